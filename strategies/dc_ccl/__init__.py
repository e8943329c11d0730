"""DC-CCL: device-cloud collaborative controlled learning, Ding et al., arXiv 2303.10361.

                  cloud                       │              each device
                                              │
  once   cloud submodel ── distil ─> mimic ───┼── by hash ──> mimic, frozen
              (stays)                         │
  round  co-submodel ─────────────────────────┼─────────────> co-submodel
              │                               │                    │
         train on cloud samples               │          train on private samples
         under CE(mimic + co, y)              │          under CE(mimic + co, y)
              │                               │                    │
         own copy ──────> fuse <──────────────┼─────────────── its copy
                            │                 │
         next co-submodel <─┘                 │
                                              │
  serve  cloud submodel + co-submodel         │   mimic + co-submodel

``method.py`` holds the round, ``device.py`` the turns that a device is asked for and takes,
``cloud.py`` what the server keeps, ``conf.py`` the keys, ``front.py`` what Flower's users import.
"""
