"""Settings to objects: one small table a kind. A new kind is its file in its room, its settings and a line here."""
