"""The kinds of sources: folders of pictures, tables, tar shards, sets known by name."""
