"""From a volume to located detections: tiles, decoding, regions, outputs."""
