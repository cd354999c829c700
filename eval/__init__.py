"""Official metrics from arrays and files: no model and no JAX needed, any detector can use them."""
