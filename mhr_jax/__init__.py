"""Multi-Head Adapter Routing for JAX."""
