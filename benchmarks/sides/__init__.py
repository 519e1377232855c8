"""One module for each side of each case, with `prepare(options, device) -> Prepared`."""
