"""The BIDS App: scans of a data set to derivatives, and one table over all participants."""
