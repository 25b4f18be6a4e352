"""The address of a page as it stands, to be copied."""

from urllib.parse import urlencode

import streamlit as st

from dashboard import format as f


def copy_link(caption: str) -> None:
    """A button that shows the address, with everything that is chosen on the page."""
    with st.popover("Copy link", icon=":material/link:"):
        address = (st.context.url or "").partition("?")[0]
        query = urlencode([(name, value) for name in st.query_params for value in st.query_params.get_all(name)])
        st.caption(caption)
        st.code(f.visible(f"{address}?{query}" if query else address), language=None, wrap_lines=True)
