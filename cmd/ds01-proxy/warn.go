package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy"
)

// warnOfRoot says once if containers' root is the host's.
func (d *daemon) warnOfRoot() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	st, err := d.index.State(ctx)
	if err != nil {
		return
	}
	if root, _, err := st.Remap(); err != nil || root != 0 {
		d.noteErr("users of containers", err)
		return
	}
	d.warned.Do(func() {
		const fix = `set "userns-remap" in the Engine's daemon.json, or container_root: deny`
		if switchOf(d.config.ContainerRoot) == policy.SwitchDeny {
			d.log.Info("the Engine maps no users: containers must run as their users; with userns-remap they need not")
			return
		}
		d.log.Warn("the Engine maps no users: root in a container is root of this host to its user's other processes", zap.String("fix", fix))
	})
}

// warnOfLinks seals the Engine's layers, and says so where it cannot.
func (d *daemon) warnOfLinks() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	st, err := d.index.State(ctx)
	if err != nil {
		return
	}
	why := proxy.Unsealed(st, d.links)
	if why == d.lastLinks {
		return
	}
	d.lastLinks = why
	switch {
	case why == "":
	case switchOf(d.config.HostLinks) == policy.SwitchDeny:
		d.log.Warn("links of containers could lead the Engine onto this host: commit, build and cp are refused", zap.String("cause", why))
	default:
		d.log.Warn("links of containers can lead the Engine onto this host: commit, build and cp read and mount there as root", zap.String("cause", why), zap.String("fix", "host_links: deny"))
	}
}
