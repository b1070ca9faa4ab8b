"""Messages of protos/runc.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/runc.proto",
    package="containerd.runc.v1",
    dependencies=(),
    public=(),
    messages=(
        "Options",
        "CheckpointOptions",
        "ProcessDetails",
    ),
    descriptor=(
        b'\n\x11protos/runc.proto\x12\x12containerd.runc.v1"\x93\x02\n\x07Opti'
        b'ons\x12\x15\n\rno_pivot_root\x18\x01 \x01(\x08\x12\x16\n\x0eno_new_keyring\x18\x02 \x01'
        b'(\x08\x12\x13\n\x0bshim_cgroup\x18\x03 \x01(\t\x12\x0e\n\x06io_uid\x18\x04 \x01(\r\x12\x0e\n\x06io_gi'
        b'd\x18\x05 \x01(\r\x12\x13\n\x0bbinary_name\x18\x06 \x01(\t\x12\x0c\n\x04root\x18\x07 \x01(\t\x12\x16\n\x0esy'
        b'stemd_cgroup\x18\t \x01(\x08\x12\x17\n\x0fcriu_image_path\x18\n \x01(\t\x12\x16\n\x0ec'
        b'riu_work_path\x18\x0b \x01(\t\x12\x18\n\x10task_api_address\x18\x0c \x01(\t\x12\x18\n'
        b'\x10task_api_version\x18\r \x01(\rJ\x04\x08\x08\x10\t"\xe4\x01\n\x11CheckpointOpti'
        b'ons\x12\x0c\n\x04exit\x18\x01 \x01(\x08\x12\x10\n\x08open_tcp\x18\x02 \x01(\x08\x12\x1d\n\x15external_'
        b'unix_sockets\x18\x03 \x01(\x08\x12\x10\n\x08terminal\x18\x04 \x01(\x08\x12\x12\n\nfile_loc'
        b'ks\x18\x05 \x01(\x08\x12\x18\n\x10empty_namespaces\x18\x06 \x03(\t\x12\x14\n\x0ccgroups_mo'
        b'de\x18\x07 \x01(\t\x12\x12\n\nimage_path\x18\x08 \x01(\t\x12\x11\n\twork_path\x18\t \x01(\t\x12'
        b'\x13\n\x0bparent_path\x18\n \x01(\t"!\n\x0eProcessDetails\x12\x0f\n\x07exec_i'
        b'd\x18\x01 \x01(\tb\x06proto3'
    ),
)
