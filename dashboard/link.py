"""The address of a page as it stands, to be copied."""

from urllib.parse import urlencode

import streamlit as st

from dashboard import format as f


def copy_link(caption: str, **chosen: str) -> None:
    """A button that shows the address, with everything that is chosen on the page. `chosen`: what the page chose by itself,
    which a bare address would choose anew."""
    with st.popover("Copy link", icon=":material/link:"):
        address = (st.context.url or "").partition("?")[0]
        asked = [(name, value) for name in st.query_params for value in st.query_params.get_all(name)]
        query = urlencode([*asked, *((name, value) for name, value in chosen.items() if name not in st.query_params)])
        st.caption(caption)
        st.code(f.visible(f"{address}?{query}" if query else address), language=None, wrap_lines=True)
