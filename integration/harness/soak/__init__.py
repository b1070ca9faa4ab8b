"""Pods that live and die at random for hours, and what is checked of them."""
