"""Checks of single values in `config.json`. Errors name the value first, then what is allowed."""


def is_int(value: object) -> bool:
    """JSON's `true` is no integer, but Python's `True` is one."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(key: str, value: object, low: float, high: float) -> None:
    """Raises ValueError unless low < value <= high. NaN, infinity, text and booleans are refused too."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low < value <= high):
        raise ValueError(f"{key} is {short(value)}, but must be a number above {low:g}, up to {high:g}")


def short(value: object, most: int = 60) -> str:
    """The value as Python writes it, cut to a length that fits into a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits, or very deep nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."
