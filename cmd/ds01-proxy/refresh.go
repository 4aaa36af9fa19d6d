package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/proxy"
)

// refresh reads limits and accounts and opens and closes sockets accordingly.
func (d *daemon) refresh() error {
	d.reloadLimits()
	if err := d.directory.Refresh(d.config.rules(d.limits)); err != nil {
		return err
	}
	listed := d.directory.Listed()
	owners := make([]proxy.Owner, 0, len(listed))
	for _, a := range listed {
		owners = append(owners, proxy.Owner{Name: a.Name, UID: a.UID})
	}
	opened, closed, err := d.sockets.Update(owners)
	if opened+closed > 0 {
		d.log.Info("sockets changed", zap.Int("opened", opened), zap.Int("closed", closed))
	}
	if err != nil {
		d.complain("some users have no socket of their own", err)
	} else {
		d.lastProblem = ""
	}
	return nil
}

// reloadLimits reads the limits again; where it cannot, it says so once.
func (d *daemon) reloadLimits() {
	err := d.limits.Reload()
	switch {
	case err == nil && d.lastLimits != "":
		d.lastLimits = ""
		d.log.Info("the limits can be used again")
	case err != nil && err.Error() != d.lastLimits:
		d.lastLimits = err.Error()
		d.log.Error("the limits cannot be used; their last good state holds", zap.Error(err))
	}
}

// complain logs a problem once until it changes.
func (d *daemon) complain(what string, err error) {
	if text := what + err.Error(); text != d.lastProblem {
		d.lastProblem = text
		d.log.Error(what, zap.Error(err))
	}
}

// keepUsers refreshes at intervals, on SIGHUP, and when an account file or the limits
// change.
func (d *daemon) keepUsers(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch account files: %w", err)
	}
	defer watcher.Close()
	// Editors and useradd replace files, so the directory is watched.
	if err := watcher.Add("/etc"); err != nil {
		d.log.Warn("a directory is not watched; its changes are seen at the next refresh", zap.String("directory", "/etc"), zap.Error(err))
	}
	limited := make(chan struct{}, 1)
	go func() {
		d.noteErr("changes of limits are seen at the next refresh", d.limits.Watch(ctx, func() {
			select {
			case limited <- struct{}{}:
			default:
			}
		}))
	}()
	tick := time.NewTicker(d.config.refresh())
	defer tick.Stop()
	// Several changes within a moment are one.
	settle := time.NewTimer(0)
	<-settle.C
	for {
		select {
		case <-ctx.Done():
			d.log.Info("stopping")
			return nil
		case e := <-watcher.Events:
			switch {
			case e.Name == "/etc/passwd", e.Name == "/etc/group":
				settle.Reset(200 * time.Millisecond)
			}
			continue
		case err := <-watcher.Errors:
			d.log.Warn("watching account files", zap.Error(err))
			continue
		case <-limited:
		case <-settle.C:
		case <-tick.C:
		case <-hup:
		}
		if err := d.refresh(); err != nil {
			d.complain("users cannot be read; those known so far are served", err)
		}
		go d.sliceAll(ctx)
	}
}

// serveMetrics answers GET /metrics on <run_dir>/metrics.sock, which is root's.
func (d *daemon) serveMetrics() error {
	d.metrics.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ds01_proxy_index_containers", Help: "Containers whose owner is known."},
			func() float64 { n, _, _ := d.index.Size(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ds01_proxy_index_synced", Help: "1 while the ownership index is in step with the Engine."},
			func() float64 {
				if _, _, synced := d.index.Size(); synced {
					return 1
				}
				return 0
			}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "ds01_proxy_index_questions_total", Help: "Questions about ownership that went to the Engine."},
			func() float64 { return float64(d.index.Asked()) }),
	)
	path := filepath.Join(d.config.RunDir, "metrics.sock")
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("metrics socket: %w", err)
	}
	// The file must not be anybody's but root's for a moment either.
	umask := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(umask)
	if err != nil {
		return fmt.Errorf("metrics socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	d.closers = append(d.closers, srv.Close)
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("metrics are not served any more", zap.Error(err))
		}
	}()
	return nil
}
