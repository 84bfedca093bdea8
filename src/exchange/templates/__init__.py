"""The scripts that exported folders carry: they run without this repository, so no module of it but this package's is used."""
