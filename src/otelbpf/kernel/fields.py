# SPDX-License-Identifier: Apache-2.0
"""The fields of the kernel's structures that the programs read, and where they lie.

Each becomes an OFFSET_* that bpf/kernel/fields.h uses; nothing depends on a kernel's
version or on its headers.
"""

from __future__ import annotations

from otelbpf.errors import KernelError
from otelbpf.kernel.btf import Btf

# name in C -> (struct, path to the field)
_FIELDS = {
    "SOCK_COMMON_DADDR": ("sock", "__sk_common.skc_daddr"),
    "SOCK_COMMON_RCV_SADDR": ("sock", "__sk_common.skc_rcv_saddr"),
    "SOCK_COMMON_DPORT": ("sock", "__sk_common.skc_dport"),
    "SOCK_COMMON_NUM": ("sock", "__sk_common.skc_num"),
    "SOCK_COMMON_HASH": ("sock", "__sk_common.skc_hash"),
    "SOCK_COMMON_FAMILY": ("sock", "__sk_common.skc_family"),
    "SOCK_COMMON_STATE": ("sock", "__sk_common.skc_state"),
    "SOCK_COMMON_NET": ("sock", "__sk_common.skc_net"),
    "SOCK_COMMON_V6_DADDR": ("sock", "__sk_common.skc_v6_daddr"),
    "SOCK_COMMON_V6_RCV_SADDR": ("sock", "__sk_common.skc_v6_rcv_saddr"),
    "SOCK_ERR": ("sock", "sk_err"),
    "SOCK_SHUTDOWN": ("sock", "sk_shutdown"),
    "SOCK_DST_CACHE": ("sock", "sk_dst_cache"),
    "SOCK_RX_IFINDEX": ("sock", "sk_rx_dst_ifindex"),
    "SOCK_SOCKET": ("sock", "sk_socket"),
    "SOCKET_FILE": ("socket", "file"),
    "FILE_F_FLAGS": ("file", "f_flags"),
    "INET_SOCK_SPORT": ("inet_sock", "inet_sport"),
    "TCP_SOCK_RCV_NXT": ("tcp_sock", "rcv_nxt"),
    "TCP_SOCK_COPIED_SEQ": ("tcp_sock", "copied_seq"),
    "TCP_SOCK_SND_UNA": ("tcp_sock", "snd_una"),
    "TCP_SOCK_WRITE_SEQ": ("tcp_sock", "write_seq"),
    "MSGHDR_ITER_COUNT": ("msghdr", "msg_iter.count"),
    "TASK_STRUCT_PID": ("task_struct", "pid"),
    "TASK_STRUCT_MM": ("task_struct", "mm"),
    "TASK_STRUCT_GROUP_LEADER": ("task_struct", "group_leader"),
    "TASK_STRUCT_START_BOOTTIME": ("task_struct", "start_boottime"),
    "TASK_STRUCT_COMM": ("task_struct", "comm"),
    "TASK_STRUCT_FLAGS": ("task_struct", "flags"),
    "TASK_STRUCT_FSBASE": ("task_struct", "thread.fsbase"),
    "MM_STRUCT_START_STACK": ("mm_struct", "start_stack"),
    "SK_BUFF_CB": ("sk_buff", "cb"),
    "DST_ENTRY_DEV": ("dst_entry", "dev"),
    "NET_DEVICE_IFINDEX": ("net_device", "ifindex"),
    "NET_COOKIE": ("net", "net_cookie"),
    "BPF_ITER_META_SEQ": ("bpf_iter_meta", "seq"),
    "BPF_PROG_AUX": ("bpf_prog", "aux"),
    "BPF_PROG_AUX_ID": ("bpf_prog_aux", "id"),
    "BPF_PROG_AUX_NAME": ("bpf_prog_aux", "name"),
    "BPF_PROG_AUX_USED_MAPS": ("bpf_prog_aux", "used_maps"),
    "BPF_PROG_AUX_USED_MAP_CNT": ("bpf_prog_aux", "used_map_cnt"),
    "BPF_MAP_NAME": ("bpf_map", "name"),
}
# Where a field was before it was there.
_EARLIER = {
    "SOCK_RX_IFINDEX": ("inet_sock", "rx_dst_ifindex"),  # until 5.16
}


def field_offsets(btf: Btf) -> dict[str, int]:
    """Where each field lies in the running kernel.

    Returns:
        C macro name (OFFSET_*) -> bytes.
    Raises:
        KernelError: the kernel has no such field.
    """
    offsets = {}
    for name, (struct, path) in _FIELDS.items():
        offset = btf.offset_of(struct, path)
        if offset is None and name in _EARLIER:
            offset = btf.offset_of(*_EARLIER[name])
        if offset is None:
            raise KernelError(
                f"this kernel's struct {struct} has no field {path}, so otelbpf does not know this "
                "kernel yet",
                "please report its version and `otelbpf check --json`",
            )
        offsets[f"OFFSET_{name}"] = offset
    return offsets
