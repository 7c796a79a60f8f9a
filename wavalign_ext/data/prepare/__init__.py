"""``wavalign prepare``: dialogues in JSONL to verl's parquet, with their audio as the codec's codes.

One direction: samples (a line's fields) → audio (a clean waveform) → encode (codes, in parallel, cached) → rows
(checked against layout and tokenizer) → command (files, messages, exit status).
"""
