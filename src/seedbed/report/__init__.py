"""Reads run and study folders, writes figures and one self-contained HTML page. Loads without torch, trains nothing."""
