"""Training of one run on Lightning Fabric."""
