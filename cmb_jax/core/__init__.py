"""What everything else is about: the record of a detection."""
