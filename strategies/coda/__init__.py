"""CoDA: cloud-coordinated data augmentation, Gu, Niu, Yan, Wu, Tang, Jia, Lyu and Chen,
arXiv 2201.10382; beside it MPDA, Yan, Niu, Gu, Wu, Tang, Hua, Lyu and Chen, KDD 2022.

             cloud                                 │          each device, one user
                                                   │
  once   past of all users ── train ──> model f_0 ─┼── by hash ──> model f_0
                                                   │
  round  keys: items and what was liked before <───┼── own samples, past and recent
             │                                     │
         the pool's samples that are like them,    │
         of all users but this one ────────────────┼──> classifier: could they be own ones?
                                                   │         │
                                                   │    own samples + those kept (or weighed)
                                                   │         │ train, from f_0
         how well it ranks <───────────────────────┼── own model, which stays; scores

The abstract is all that was known of CoDA here: keys, classifier and weights are this project's
choice. Nothing is averaged and no model comes up. Privacy is not what this is for: the cloud holds
the samples of all users, and a device is sent other users' samples as they are, profiles included,
though not whose they are; a number says which are of one user where MPDA needs it.

``method.py`` is the server's half, ``device.py`` a device's, ``sieve.py`` what a device makes of
samples from outside, ``shared.py`` what both halves have, ``conf.py`` the keys.
"""
