"""Maths: functions of tensors, settings and generators. No disk, no tracking, no command line, no choice of device."""
