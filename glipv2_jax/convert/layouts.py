"""How PyTorch lays out the tensors of one module, and how this network does: the vocabulary of the name tables."""

import numpy as np

# Module kinds: our leaf -> (their leaves, layout). Several leaves of theirs are joined along our last axis.
KINDS = {
  "linear": {"kernel": (("weight",), "linear"), "bias": (("bias",), "same")},
  "conv": {"kernel": (("weight",), "conv"), "bias": (("bias",), "same")},
  "pointwise": {"kernel": (("weight",), "pointwise"), "bias": (("bias",), "same")},  # 1x1 convolution, linear here
  "conv_rgb": {"kernel": (("weight",), "conv_rgb"), "bias": (("bias",), "same")},  # reads RGB, ours BGR
  "norm": {"scale": (("weight",), "same"), "bias": (("bias",), "same")},
  "norm_gamma": {"scale": (("gamma",), "same"), "bias": (("beta",), "same")},  # as TensorFlow called them
  "unfold_norm": {"scale": (("weight",), "unfold_vector"), "bias": (("bias",), "unfold_vector")},
  "unfold_linear": {"kernel": (("weight",), "unfold_linear")},
  "embedding": {"embedding": (("weight",), "same")},
  "query_key_value": {
    "kernel": (("query.weight", "key.weight", "value.weight"), "linear"),
    "bias": (("query.bias", "key.bias", "value.bias"), "same"),
  },
  "q_k_v_proj": {
    "kernel": (("q_proj.weight", "k_proj.weight", "v_proj.weight"), "linear"),
    "bias": (("q_proj.bias", "k_proj.bias", "v_proj.bias"), "same"),
  },
  "in_proj": {"kernel": (("in_proj_weight",), "linear"), "bias": (("in_proj_bias",), "same")},
}


def from_unfold(x):
  """... c*4 -> ... 4*c: `nn.Unfold` puts the four neighbours of a patch inside each channel, row by row; Swin puts the
  channels inside each neighbour, column by column."""
  return x.reshape(*x.shape[:-1], -1, 2, 2).swapaxes(-3, -1).reshape(x.shape)


def to_unfold(x):
  return x.reshape(*x.shape[:-1], 2, 2, -1).swapaxes(-3, -1).reshape(x.shape)


# Layouts: (theirs -> ours, ours -> theirs).
LAYOUTS = {
  "same": (lambda x: x, lambda x: x),
  "linear": (np.transpose, np.transpose),
  "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
  "conv_rgb": (lambda x: x[:, ::-1].transpose(2, 3, 1, 0), lambda x: x[:, :, ::-1].transpose(3, 2, 0, 1)),
  "pointwise": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
  "unfold_vector": (from_unfold, to_unfold),
  "unfold_linear": (lambda x: from_unfold(x).T, lambda x: to_unfold(x.T)),
}
