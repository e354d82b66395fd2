"""Shards, streams, byte accounting and corpora: how text becomes the tokens that models are trained and scored on."""
