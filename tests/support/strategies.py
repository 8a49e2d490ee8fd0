"""What several tests draw from."""

from hypothesis import strategies as st

#: all that UTF-8 can write; hypothesis' own default asks the codec about each character, which takes seconds
CHARACTERS = st.characters(exclude_categories=["Cs"])
