"""The offline tiny world: its texts, their recordings, its tokenizer, its data sets and its base model.

Speech comes from espeak-ng in child processes; training the base is a stage like any other and is not done here.
"""
