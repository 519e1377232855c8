"""One module a command: arguments in, files out. The functions behind them are in the other folders."""
