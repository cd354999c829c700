"""The objective L = L_loc + L_intra (+ L_inter + L_mlm): every term returns (sum, count)."""
