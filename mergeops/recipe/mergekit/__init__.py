"""mergekit's YAML as a native recipe, so that users' files run unchanged.

    model_names     path@revision+lora
    document        one merge, every key known
    method_table    mergekit's methods, their parameters and defaults
    levels          scalars, gradients and filters, level by level
    token_settings  tokenizer and chat template
    convert         one document as a native recipe
    read            the file as a native recipe

What a config may not say raises a ConfigError: the line, the key, the value and what is allowed.

What is read here decides everything: the native recipe that ``read_mergekit`` gives is merged like
any other, and ``mergeops convert`` writes it to a file. docs/mergekit.md lists what differs.
"""
