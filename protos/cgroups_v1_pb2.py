"""Messages of protos/cgroups_v1.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/cgroups_v1.proto",
    package="io.containerd.cgroups.v1",
    dependencies=(),
    public=(),
    messages=(
        "Metrics",
        "HugetlbStat",
        "PidsStat",
        "CPUStat",
        "CPUUsage",
        "Throttle",
        "MemoryStat",
        "MemoryEntry",
        "MemoryOomControl",
        "BlkIOStat",
        "BlkIOEntry",
        "RdmaStat",
        "RdmaEntry",
        "NetworkStat",
        "CgroupStats",
    ),
    descriptor=(
        b'\n\x17protos/cgroups_v1.proto\x12\x18io.containerd.cgroups'
        b'.v1"\xfc\x03\n\x07Metrics\x126\n\x07hugetlb\x18\x01 \x03(\x0b2%.io.containerd'
        b'.cgroups.v1.HugetlbStat\x120\n\x04pids\x18\x02 \x01(\x0b2".io.conta'
        b'inerd.cgroups.v1.PidsStat\x12.\n\x03cpu\x18\x03 \x01(\x0b2!.io.cont'
        b'ainerd.cgroups.v1.CPUStat\x124\n\x06memory\x18\x04 \x01(\x0b2$.io.c'
        b'ontainerd.cgroups.v1.MemoryStat\x122\n\x05blkio\x18\x05 \x01(\x0b2#'
        b'.io.containerd.cgroups.v1.BlkIOStat\x120\n\x04rdma\x18\x06 \x01('
        b'\x0b2".io.containerd.cgroups.v1.RdmaStat\x126\n\x07network'
        b'\x18\x07 \x03(\x0b2%.io.containerd.cgroups.v1.NetworkStat\x12;\n'
        b'\x0ccgroup_stats\x18\x08 \x01(\x0b2%.io.containerd.cgroups.v1.C'
        b'groupStats\x12F\n\x12memory_oom_control\x18\t \x01(\x0b2*.io.cont'
        b'ainerd.cgroups.v1.MemoryOomControl"L\n\x0bHugetlbSta'
        b't\x12\r\n\x05usage\x18\x01 \x01(\x04\x12\x0b\n\x03max\x18\x02 \x01(\x04\x12\x0f\n\x07failcnt\x18\x03 \x01(\x04\x12\x10'
        b'\n\x08pagesize\x18\x04 \x01(\t"*\n\x08PidsStat\x12\x0f\n\x07current\x18\x01 \x01(\x04\x12\r\n'
        b'\x05limit\x18\x02 \x01(\x04"t\n\x07CPUStat\x121\n\x05usage\x18\x01 \x01(\x0b2".io.cont'
        b'ainerd.cgroups.v1.CPUUsage\x126\n\nthrottling\x18\x02 \x01(\x0b2"'
        b'.io.containerd.cgroups.v1.Throttle"H\n\x08CPUUsage\x12\r'
        b'\n\x05total\x18\x01 \x01(\x04\x12\x0e\n\x06kernel\x18\x02 \x01(\x04\x12\x0c\n\x04user\x18\x03 \x01(\x04\x12\x0f\n\x07p'
        b'er_cpu\x18\x04 \x03(\x04"N\n\x08Throttle\x12\x0f\n\x07periods\x18\x01 \x01(\x04\x12\x19\n\x11thr'
        b'ottled_periods\x18\x02 \x01(\x04\x12\x16\n\x0ethrottled_time\x18\x03 \x01(\x04"\xc5\x07\n'
        b'\nMemoryStat\x12\r\n\x05cache\x18\x01 \x01(\x04\x12\x0b\n\x03rss\x18\x02 \x01(\x04\x12\x10\n\x08rss_h'
        b'uge\x18\x03 \x01(\x04\x12\x13\n\x0bmapped_file\x18\x04 \x01(\x04\x12\r\n\x05dirty\x18\x05 \x01(\x04\x12\x11\n'
        b'\twriteback\x18\x06 \x01(\x04\x12\x10\n\x08pg_pg_in\x18\x07 \x01(\x04\x12\x11\n\tpg_pg_out\x18'
        b'\x08 \x01(\x04\x12\x10\n\x08pg_fault\x18\t \x01(\x04\x12\x14\n\x0cpg_maj_fault\x18\n \x01(\x04\x12\x15\n'
        b'\rinactive_anon\x18\x0b \x01(\x04\x12\x13\n\x0bactive_anon\x18\x0c \x01(\x04\x12\x15\n\rina'
        b'ctive_file\x18\r \x01(\x04\x12\x13\n\x0bactive_file\x18\x0e \x01(\x04\x12\x13\n\x0bunevict'
        b'able\x18\x0f \x01(\x04\x12!\n\x19hierarchical_memory_limit\x18\x10 \x01(\x04\x12\x1f\n'
        b'\x17hierarchical_swap_limit\x18\x11 \x01(\x04\x12\x13\n\x0btotal_cache\x18\x12 '
        b'\x01(\x04\x12\x11\n\ttotal_rss\x18\x13 \x01(\x04\x12\x16\n\x0etotal_rss_huge\x18\x14 \x01(\x04\x12\x19'
        b'\n\x11total_mapped_file\x18\x15 \x01(\x04\x12\x13\n\x0btotal_dirty\x18\x16 \x01(\x04\x12\x17'
        b'\n\x0ftotal_writeback\x18\x17 \x01(\x04\x12\x16\n\x0etotal_pg_pg_in\x18\x18 \x01(\x04\x12'
        b'\x17\n\x0ftotal_pg_pg_out\x18\x19 \x01(\x04\x12\x16\n\x0etotal_pg_fault\x18\x1a \x01(\x04'
        b'\x12\x1a\n\x12total_pg_maj_fault\x18\x1b \x01(\x04\x12\x1b\n\x13total_inactive_a'
        b'non\x18\x1c \x01(\x04\x12\x19\n\x11total_active_anon\x18\x1d \x01(\x04\x12\x1b\n\x13total_in'
        b'active_file\x18\x1e \x01(\x04\x12\x19\n\x11total_active_file\x18\x1f \x01(\x04\x12\x19\n\x11'
        b'total_unevictable\x18  \x01(\x04\x124\n\x05usage\x18! \x01(\x0b2%.io.cont'
        b'ainerd.cgroups.v1.MemoryEntry\x123\n\x04swap\x18" \x01(\x0b2%.io'
        b'.containerd.cgroups.v1.MemoryEntry\x125\n\x06kernel\x18# \x01'
        b'(\x0b2%.io.containerd.cgroups.v1.MemoryEntry\x129\n\nker'
        b'nel_tcp\x18$ \x01(\x0b2%.io.containerd.cgroups.v1.MemoryE'
        b'ntry"I\n\x0bMemoryEntry\x12\r\n\x05limit\x18\x01 \x01(\x04\x12\r\n\x05usage\x18\x02 \x01('
        b'\x04\x12\x0b\n\x03max\x18\x03 \x01(\x04\x12\x0f\n\x07failcnt\x18\x04 \x01(\x04"Q\n\x10MemoryOomCont'
        b'rol\x12\x18\n\x10oom_kill_disable\x18\x01 \x01(\x04\x12\x11\n\tunder_oom\x18\x02 \x01(\x04'
        b'\x12\x10\n\x08oom_kill\x18\x03 \x01(\x04"\xb1\x04\n\tBlkIOStat\x12H\n\x1aio_service_b'
        b'ytes_recursive\x18\x01 \x03(\x0b2$.io.containerd.cgroups.v1.'
        b'BlkIOEntry\x12C\n\x15io_serviced_recursive\x18\x02 \x03(\x0b2$.io.c'
        b'ontainerd.cgroups.v1.BlkIOEntry\x12A\n\x13io_queued_rec'
        b'ursive\x18\x03 \x03(\x0b2$.io.containerd.cgroups.v1.BlkIOEnt'
        b'ry\x12G\n\x19io_service_time_recursive\x18\x04 \x03(\x0b2$.io.conta'
        b'inerd.cgroups.v1.BlkIOEntry\x12D\n\x16io_wait_time_recu'
        b'rsive\x18\x05 \x03(\x0b2$.io.containerd.cgroups.v1.BlkIOEntr'
        b'y\x12A\n\x13io_merged_recursive\x18\x06 \x03(\x0b2$.io.containerd.c'
        b'groups.v1.BlkIOEntry\x12?\n\x11io_time_recursive\x18\x07 \x03(\x0b2'
        b'$.io.containerd.cgroups.v1.BlkIOEntry\x12?\n\x11sectors'
        b'_recursive\x18\x08 \x03(\x0b2$.io.containerd.cgroups.v1.BlkI'
        b'OEntry"U\n\nBlkIOEntry\x12\n\n\x02op\x18\x01 \x01(\t\x12\x0e\n\x06device\x18\x02 \x01(\t'
        b'\x12\r\n\x05major\x18\x03 \x01(\x04\x12\r\n\x05minor\x18\x04 \x01(\x04\x12\r\n\x05value\x18\x05 \x01(\x04"t\n'
        b'\x08RdmaStat\x124\n\x07current\x18\x01 \x03(\x0b2#.io.containerd.cgrou'
        b'ps.v1.RdmaEntry\x122\n\x05limit\x18\x02 \x03(\x0b2#.io.containerd.c'
        b'groups.v1.RdmaEntry"E\n\tRdmaEntry\x12\x0e\n\x06device\x18\x01 \x01(\t'
        b'\x12\x13\n\x0bhca_handles\x18\x02 \x01(\r\x12\x13\n\x0bhca_objects\x18\x03 \x01(\r"\xb5\x01\n\x0bN'
        b'etworkStat\x12\x0c\n\x04name\x18\x01 \x01(\t\x12\x10\n\x08rx_bytes\x18\x02 \x01(\x04\x12\x12\n\nrx'
        b'_packets\x18\x03 \x01(\x04\x12\x11\n\trx_errors\x18\x04 \x01(\x04\x12\x12\n\nrx_dropped\x18'
        b'\x05 \x01(\x04\x12\x10\n\x08tx_bytes\x18\x06 \x01(\x04\x12\x12\n\ntx_packets\x18\x07 \x01(\x04\x12\x11\n\tt'
        b'x_errors\x18\x08 \x01(\x04\x12\x12\n\ntx_dropped\x18\t \x01(\x04"z\n\x0bCgroupStat'
        b's\x12\x13\n\x0bnr_sleeping\x18\x01 \x01(\x04\x12\x12\n\nnr_running\x18\x02 \x01(\x04\x12\x12\n\nnr'
        b'_stopped\x18\x03 \x01(\x04\x12\x1a\n\x12nr_uninterruptible\x18\x04 \x01(\x04\x12\x12\n\nnr'
        b'_io_wait\x18\x05 \x01(\x04b\x06proto3'
    ),
)
