"""How many captions are wrong, in words: the same ones wherever a share is reported."""


def share_in_words(
    share: tuple[float, float, float], of: str = "", *, is_weak: bool = False, is_lower_bound: bool = False
) -> str:
    """The share of wrong pairs with the ends of its 95 % interval.

    of: what the percentage is of, such as "of the captions are wrong", which makes a sentence of it. is_weak: the judge
    cannot tell how many. is_lower_bound: there may be more.

    Example:
        >>> share_in_words((0.053, 0.041, 0.06))
        '5.3 % (4.1 to 6.0 %)'
        >>> share_in_words((0.053, 0.041, 0.06), "of the captions are wrong")
        '5.3 % of the captions are wrong (4.1 to 6.0 %)'
        >>> share_in_words((0.0, 0.0, 0.008), "of the captions are wrong")
        'no wrong captions found (0 to 0.8 %)'
        >>> share_in_words((0.0, 0.0, 0.662), "of the captions are wrong", is_weak=True)
        'how many of the captions are wrong is not known (0 to 66.2 %)'
    """
    found, low, high = (f"{100 * part:.1f}" for part in share)
    of = of and f" {of}"
    if is_weak:
        return f"{f'how many{of} is ' if of else ''}not known (0 to {high} %)"
    if share[0] == 0:
        return f"no wrong captions found (0 to {high} %)"
    return f"at least {found} %{of}" if is_lower_bound else f"{found} %{of} ({low} to {high} %)"
