"""Stages: load artifacts, open a tracking run, call the maths, save. No stage imports another."""
