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

// peerOf returns the address that a peer is counted by: that of IPv4, or the first 64 bits of IPv6, because whoever has one
// address of such a network mostly has all. Without an IP address it is not valid.
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

// peers bounds the requests under way of each peer that a proxy in front names, in place of its connections.
type peers struct {
	header string
	max    int

	refused atomic.Int64
	mu      sync.Mutex
	busy    map[netip.Addr]int
}

// of returns the peer of a request: the last element of the header, which the proxy in front wrote; what is before it may be
// the sender's own. Without such an address it is the connection's.
func (p *peers) of(ctx *fasthttp.RequestCtx) netip.Addr {
	all := ctx.Request.Header.PeekAll(p.header)
	if len(all) > 0 {
		last := lastElement(all[len(all)-1])
		if address, err := netip.ParseAddr(last); err == nil {
			return network(address)
		}
		if address, err := netip.ParseAddrPort(last); err == nil { // some proxies name the port as well
			return network(address.Addr())
		}
	}
	return peerOf(ctx.RemoteAddr())
}

func lastElement(list []byte) string {
	return string(bytes.TrimSpace(list[bytes.LastIndexByte(list, ',')+1:]))
}

// enter counts a request and reports whether its peer may have one more.
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
		"As many requests of your address as may be are under way. The ticket was not stored; send it again later.")
}
