package httpapi

import (
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

// peerOf returns the address that a peer is counted by: its IPv4 address, or the first 64 bits of its IPv6 address, because a
// peer usually has all addresses of such a network. Without an IP address the result is not valid.
func peerOf(address net.Addr) netip.Addr {
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return network(tcp.AddrPort().Addr())
}

func network(address netip.Addr) netip.Addr {
	address = address.Unmap().WithZone("")
	if address.Is6() {
		if prefix, err := address.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return address
}

// peers bounds the requests in progress of each peer, where a proxy in front names the peers and all connections come from it.
type peers struct {
	header string
	max    int

	refused atomic.Int64

	mu   sync.Mutex
	busy map[netip.Addr]int // requests in progress of each peer that has any; guarded by mu
}

// of returns the peer of a request: the last element of the header, which the proxy in front wrote. The sender may have written
// the elements before it. If the last element is no address, the peer is that of the connection.
func (p *peers) of(ctx *fasthttp.RequestCtx) netip.Addr {
	all := ctx.Request.Header.PeekAll(p.header)
	if len(all) > 0 {
		last := lastElement(all[len(all)-1])
		if address, err := netip.ParseAddr(last); err == nil {
			return network(address)
		}
		if address, err := netip.ParseAddrPort(last); err == nil { // some proxies add the port
			return network(address.Addr())
		}
	}
	return peerOf(ctx.RemoteAddr())
}

func lastElement(list []byte) string {
	return string(bytes.TrimSpace(list[bytes.LastIndexByte(list, ',')+1:]))
}

// enter counts a request of a peer. It returns false, and counts nothing, if the peer has max requests in progress.
func (p *peers) enter(peer netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[peer] >= p.max {
		p.refused.Add(1)
		return false
	}
	p.busy[peer]++
	return true
}

func (p *peers) leave(peer netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[peer]--; p.busy[peer] == 0 {
		delete(p.busy, peer)
	}
}

func peerBusy() Response {
	return retryLater(http.StatusTooManyRequests, "peer_busy", retryOverloaded,
		"Your address has the maximum of requests in progress. The ticket was not stored; send it again later.")
}
