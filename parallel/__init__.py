"""Everything that knows ranks: groups, sharded layers, spectral reparametrisation, pipeline and ZeRO."""
