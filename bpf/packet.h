/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * From a frame to a TCP segment: Ethernet, up to two VLAN tags, IPv4 with
 * options or IPv6 with extension headers, TCP.
 */

#define ETHERNET_LENGTH 14
#define FRAGMENT_BE16 0xff3f	/* there are more, or this is not the first */
/* As they are in a frame, on little-endian machines. */
#define ETHERTYPE_IPV4_BE16 0x0008
#define ETHERTYPE_IPV6_BE16 0xdd86
#define ETHERTYPE_VLAN_BE16 0x0081
#define ETHERTYPE_QINQ_BE16 0xa888
#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_TCP 6
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_AUTHENTICATION 51
#define PROTOCOL_DESTINATION 60
#define EXTENSION_HEADERS_MAX 6

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define be16(p) __builtin_bswap16(*(u16 *)(p))
#define be32(p) __builtin_bswap32(*(u32 *)(p))

struct segment {
	struct connection_key key;
	u32 seq;
	u32 ack_seq;
	u64 payload_offset;
	u64 payload_length;
	u64 tcp_flags;
};

enum parse_result { SEGMENT_OURS = 0, SEGMENT_FOREIGN, SEGMENT_UNPARSED };

/*
 * Reads the frame [data, data_end) of frame_length bytes (more than is mapped
 * where the packet is not linear). SEGMENT_OURS fills *seg: a TCP segment to
 * (inbound) or from (outbound) a side that has one of `roles` in its connection.
 */
static __always_inline int parse_segment(u8 *data, u8 *data_end, u64 frame_length,
					 enum direction direction, u32 roles, struct segment *seg)
{
	u8 *cursor = data + ETHERNET_LENGTH, *peer, *local, *tcp;
	u64 type, protocol, ip_length, header_length, ip_offset, offset, end;
	u32 source, destination;
	int i;

	if (cursor > data_end)
		return SEGMENT_UNPARSED;
	type = *(u16 *)(data + 12);
#pragma unroll
	for (i = 0; i < 2; i++) {
		if (type != ETHERTYPE_VLAN_BE16 && type != ETHERTYPE_QINQ_BE16)
			break;
		if (cursor + 4 > data_end)
			return SEGMENT_UNPARSED;
		type = *(u16 *)(cursor + 2);
		cursor += 4;
	}

	ip_offset = cursor - data;
	/* Else clang would rather subtract a pointer from a number, which none may. */
	asm volatile("" : "+r"(ip_offset));

	if (__builtin_expect(type == ETHERTYPE_IPV4_BE16, 1)) {
		if (cursor + 20 > data_end)
			return SEGMENT_UNPARSED;
		if (cursor[9] != PROTOCOL_TCP)
			return SEGMENT_FOREIGN;
		if (*(u16 *)(cursor + 6) & FRAGMENT_BE16)
			return SEGMENT_UNPARSED;
		header_length = (cursor[0] & 0x0f) * 4;
		if (header_length < 20)
			return SEGMENT_UNPARSED;
		ip_length = be16(cursor + 2);
		source = *(u32 *)(cursor + 12);
		destination = *(u32 *)(cursor + 16);
		map_ipv4(seg->key.peer_address, direction == INBOUND ? source : destination);
		map_ipv4(seg->key.local_address, direction == INBOUND ? destination : source);
		tcp = cursor + header_length;
	} else if (type == ETHERTYPE_IPV6_BE16) {
		if (cursor + 40 > data_end)
			return SEGMENT_UNPARSED;
		protocol = cursor[6];
		ip_length = be16(cursor + 4);
		ip_length = ip_length ? ip_length + 40 : 0;	/* 0: a jumbogram made by GRO */
		peer = direction == INBOUND ? cursor + 8 : cursor + 24;
		local = direction == INBOUND ? cursor + 24 : cursor + 8;
		copy_address(seg->key.peer_address, peer);
		copy_address(seg->key.local_address, local);
		tcp = cursor + 40;
		BOUNDED_LOOP
		for (i = 0; i < EXTENSION_HEADERS_MAX; i++) {
			if (protocol == PROTOCOL_TCP)
				break;
			if (protocol != PROTOCOL_HOP_BY_HOP && protocol != PROTOCOL_ROUTING &&
			    protocol != PROTOCOL_DESTINATION &&
			    protocol != PROTOCOL_AUTHENTICATION) {
				return protocol == PROTOCOL_FRAGMENT ? SEGMENT_UNPARSED
								     : SEGMENT_FOREIGN;
			}
			if (tcp + 8 > data_end)
				return SEGMENT_UNPARSED;
			header_length = protocol == PROTOCOL_AUTHENTICATION ? (tcp[1] + 2) * 4
									    : (tcp[1] + 1) * 8;
			protocol = tcp[0];
			tcp += header_length;
		}
		if (protocol != PROTOCOL_TCP)
			return SEGMENT_UNPARSED;
	} else {
		return SEGMENT_FOREIGN;
	}

	if (tcp + 20 > data_end)
		return SEGMENT_UNPARSED;
	seg->key.peer_port = direction == INBOUND ? be16(tcp) : be16(tcp + 2);
	seg->key.local_port = direction == INBOUND ? be16(tcp + 2) : be16(tcp);
	if (!(role_in(&seg->key) & roles))
		return SEGMENT_FOREIGN;
	seg->seq = be32(tcp + 4);
	seg->ack_seq = be32(tcp + 8);
	seg->tcp_flags = tcp[13];

	header_length = (tcp[12] >> 4) * 4;
	offset = (u64)(tcp - data) + header_length;
	/* Short frames are padded, so the IP header says where the payload ends. */
	end = ip_length ? ip_offset + ip_length : frame_length;
	if (header_length < 20 || offset > end || end > frame_length)
		return SEGMENT_UNPARSED;	/* TCP would not take it either */
	seg->payload_offset = offset;
	seg->payload_length = end - offset;
	return SEGMENT_OURS;
}
