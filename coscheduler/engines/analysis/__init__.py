"""Analysis of transcripts by a language model through llama.cpp, within a capped KV cache."""
