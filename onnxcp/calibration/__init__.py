"""The user's own data: what the network is verified on."""
