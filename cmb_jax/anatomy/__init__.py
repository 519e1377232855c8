"""Brain regions: names and zones, atlas assets, anatomy pack, jitted lookup."""
