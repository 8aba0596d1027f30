"""Nouns and promises that every room stands on. Loads without torch."""
