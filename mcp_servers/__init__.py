"""The product: the servers whose tools agents call, and the hub that serves them through one gate."""
