"""MetaPatch and MoMoDistill: DCCL, Yao, Wang, Jia, Han, Zhou and Yang, arXiv 2104.06624.

             cloud                                  │          each device, one user
                                                    │
  once   past of all users ── train ──> model f,    │
         then with f frozen ──> bases Theta         │
                                                    │
  round  f + bases Theta ───────────────────────────┼──> f patched by Theta v, all frozen but v
                                                    │         │
         v of each device, kept <───────────────────┼── v, fitted to own recent samples; scores
             │                                      │
         stage 1: f learns of labels and of         │
                  what the patched f's answer       │
         stage 2: f frozen, Theta and an encoder    │
                  of v learn to answer as they do   │
             └── next round's f + Theta             │
                                                    │
  with method.serves=cloud: the new f, with proxy   │
         also what the encoder makes of v ──────────┼──> scores

Nothing is averaged. Recent samples lie on the cloud too, as published: this is no method that keeps
data private. With ``method.raw_samples=device`` they do not: both stages run on devices and FedAvg
joins what they learn there. That is no part of the paper.

``method.py`` is the server's half, ``device.py`` a device's, ``parts.py`` the models that both have
and what of them crosses, ``conf.py`` the keys.
"""
