"""Arguments and help of the commands; their work is imported only when one runs, so that --help is quick."""
