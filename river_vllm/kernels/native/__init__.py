"""River's own CPU kernels, compiled when River is installed."""
