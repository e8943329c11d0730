from dccl_flower.config import Conf

DcCclConf = Conf
