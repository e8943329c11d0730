"""ICIIA: inter-client-image attention, Yan, Niu, Wu, Li, Tang, Lyu and Chen, arXiv 2211.06276.

             cloud                                │            each device
                                                  │
  once   labelled images ── train ──> backbone ───┼── by hash ──> backbone, frozen
                                        │         │                  │
         images of one client at a time │         │            own unlabelled images
                                        v         │                  │
         features ── train ──> attention + head ──┼── by hash ──> features of the last few
                                                  │                  │
  serve                                           │   attention + head: each image in the light
                                                  │   of the others; alone, the backbone's head
  round  what share is right <────────────────────┼── scores, nothing else

Nothing is trained on devices, and no image or feature leaves one. Not so for what it is held
against: fine-tuning takes labels on devices, prompts take all devices' labels on the cloud. With
``method.training=federated`` devices train attention and head on labels of their own, by FedAvg;
that is no part of the paper. With ``method.serves=cloud`` the cloud sees the images it answers for.

``method.py`` is the server's half, ``device.py`` a device's, ``cloud.py`` what the cloud trains,
``adaptations.py`` the attention and what it is held against, ``backbone.py`` what they stand on,
``conf.py`` the keys.
"""
