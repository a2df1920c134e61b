def quickstart() -> int:
    """Placeholder while the parts land."""
    return 0
