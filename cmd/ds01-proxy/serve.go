package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy"
	"github.com/ds01/ds01-proxy/proxy/audit"
	"github.com/ds01/ds01-proxy/proxy/binds"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/proxy/images"
	"github.com/ds01/ds01-proxy/proxy/layers"
	"github.com/ds01/ds01-proxy/proxy/limits"
	"github.com/ds01/ds01-proxy/proxy/peercred"
	"github.com/ds01/ds01-proxy/proxy/quota"
	"github.com/ds01/ds01-proxy/proxy/users"
	"github.com/ds01/ds01-proxy/units"
)

func newServe() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve users on their sockets",
		Long: `Serves one socket per user and a shared one until it is told to stop. It keeps
running while the Engine is down and answers again as soon as the Engine does.`,
		Example: `  ds01-proxy serve
  ds01-proxy serve --engine unix:///run/docker.sock --run-dir /tmp/d --state-dir /tmp/d --user alice --user bob`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load(cmd)
			if err != nil {
				return err
			}
			if err := requireRoot("serve"); err != nil {
				return err
			}
			// Users must be able to reach their sockets, whatever root's umask is.
			syscall.Umask(0o022)
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			d, err := newDaemon(c)
			if err != nil {
				return err
			}
			return d.run(ctx)
		},
	}
	flags.register(cmd)
	return cmd
}

// A daemon is a running proxy with all that it is wired to.
type daemon struct {
	config    *config
	log       *zap.Logger
	index     *engine.Index
	directory *users.Directory
	server    *proxy.Server
	sockets   *proxy.Sockets
	stage     *binds.Stage
	links     *layers.Host
	metrics   *prometheus.Registry
	// closers run in reverse when the daemon ends.
	closers []func() error
	// lastProblem and lastLimits keep the same complaint from being logged at every
	// refresh.
	lastProblem, lastLimits string
	limits                  *limits.Store
	warned                  sync.Once
	feed                    *quota.Feed
	slices                  *userSlices
	slicing                 sync.Mutex
	lastLinks               string
}

// flushEvery is how long an audit record may wait in memory.
const flushEvery = time.Second

func newDaemon(c *config) (_ *daemon, err error) {
	encoding := zap.NewProductionEncoderConfig()
	encoding.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	d := &daemon{config: c, metrics: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	d.log = zap.New(zapcore.NewCore(encoder, zapcore.Lock(os.Stderr), zapcore.InfoLevel))

	if d.limits, err = limits.Open(c.LimitsFile, d.log.Named("limits")); err != nil {
		return nil, err
	}
	// The directories above may be others' way to their sockets.
	if err := errors.Join(os.MkdirAll(filepath.Dir(c.StateDir), 0o755), os.MkdirAll(c.StateDir, 0o700)); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	records := d.log.Named("audit")
	if path := c.auditPath(); path != "stderr" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		d.closers = append(d.closers, f.Close)
		buffered := &zapcore.BufferedWriteSyncer{WS: f, FlushInterval: flushEvery}
		d.closers = append(d.closers, buffered.Stop)
		records = zap.New(zapcore.NewCore(encoder, buffered, zapcore.InfoLevel))
	}

	client := engine.NewClient(c.enginePath())
	d.index = engine.NewIndex(client, d.log.Named("index"))
	d.directory = users.NewDirectory(new(users.NSS), time.Now)
	d.index.UserOfParent = func(parent string) string {
		if slice, ok := units.UserOf(parent); ok {
			return d.directory.BySlice(slice)
		}
		return ""
	}
	peers, err := peercred.NewReader()
	if err != nil {
		return nil, err
	}
	register, err := images.Open(filepath.Join(c.StateDir, "images.json"), time.Now)
	if err != nil {
		return nil, err
	}
	stage, err := binds.OpenStage(c.stagePath(), c.bindsPath(), time.Now)
	if err != nil {
		return nil, err
	}
	d.stage, d.links = stage, layers.New(c.enginePath(), stage.Dir())
	d.index.Uses = func(id, owner string, tokens []string) {
		d.noteErr("remember a container's binds", stage.Use(id, owner, tokens))
	}
	d.index.Gone = func(id string) {
		d.feed.Book.Gone(id)
		d.noteErr("take away a container's binds", stage.Release(id))
	}
	d.index.Known = func(exists func(string) bool) {
		d.noteErr("take away unused binds", stage.Sweep(exists))
		d.warnOfRoot()
		d.warnOfLinks()
	}
	keeper, err := d.quotas(c, client)
	if err != nil {
		return nil, err
	}
	resources, store := engine.NewResources(client), engine.NewImages(client)
	d.server, err = proxy.New(proxy.Options{
		Engine: c.enginePath(), Owners: d.index, Ledger: d.index, Resources: resources, Catalog: resources, Census: resources, Names: resources, Index: d.index, Directory: d.directory,
		Images: store, Registry: store, Tags: register, Writings: register, Forgetter: register, ImageMode: visibilityOf(c.Images),
		Stage: stage, Staged: stage, Remounter: stage, Users: engine.NewPasswd(client), StageDir: stage.Dir(), Private: []string{c.StateDir, c.RunDir},
		Shared:   c.sharedPath(),
		SocketOf: func(user string) string { return proxy.UserSocket(c.RunDir, user) },
		Recorder: audit.New(records, d.log.Named("audit"), d.metrics), Peers: peers, Processes: client, Layouts: client, Links: d.links,
		Switches: proxy.Switches{
			UnownedContainers: switchOf(c.UnownedContainers), UnownedResources: switchOf(c.UnownedResources),
			UnknownRoutes: switchOf(c.UnknownRoutes), ContainerRoot: switchOf(c.ContainerRoot), HostLinks: switchOf(c.HostLinks), CgroupErrors: switchOf(c.OnCgroupError),
			BuildKit: switchOf(c.Builds.BuildKit), RemoteBuilds: switchOf(c.Builds.Remote),
		},
		Networks: c.networkRules(), Quota: keeper, GPUs: proxy.AsAsked{}, Slices: d.slices, Limits: d.limits,
		Log: d.log, Now: time.Now,
	})
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.server.Close)
	if d.sockets, err = proxy.OpenSockets(d.server, c.RunDir, c.sharedPath(), d.log); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.sockets.Close)
	return d, nil
}

func (d *daemon) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	return errors.Join(errs...)
}

// run serves until ctx ends.
func (d *daemon) run(ctx context.Context) error {
	defer func() {
		if err := d.close(); err != nil {
			d.log.Error("while stopping", zap.Error(err))
		}
	}()
	if err := d.serveMetrics(); err != nil {
		return err
	}
	if err := d.refresh(); err != nil {
		return err
	}
	// Users' sockets are there now: they may be bound too.
	missing, err := d.stage.Restore()
	if err != nil {
		return err
	}
	for _, b := range missing {
		d.log.Warn("a bind cannot be mounted again; its containers will not get it", zap.String("user", b.User), zap.String("source", b.Source), zap.Strings("containers", b.Containers))
	}
	go d.feed.Run(ctx)
	go d.index.Run(ctx)
	go d.sliceAll(ctx)
	for _, m := range []struct {
		mode string
		what string
	}{{"monitoring", "rules are checked and not enforced"}, {"disabled", "nothing is checked"}} {
		if d.config.Enforcement == m.mode {
			d.log.Warn("enforcement is " + m.mode + ": " + m.what)
		}
	}
	if switchOf(d.config.Builds.BuildKit) == policy.SwitchAllow {
		d.log.Warn("builds.buildkit is allow: the steps of BuildKit builds run outside of the users' slices, and its sessions write any tag; deny makes clients use the classic builder")
		if visibilityOf(d.config.Images) == policy.ImagesPrivate {
			d.log.Warn("images is private and builds.buildkit is allow: what BuildKit builds is shared all the same; set builds.buildkit to deny")
		}
	}
	rows, err := userRows(d.directory, d.config.RunDir)
	if err != nil {
		return err
	}
	if err := printUsers(os.Stdout, rows); err != nil {
		return err
	}
	if path := d.config.sharedPath(); path != "" {
		fmt.Println("everybody: " + path)
	}
	d.log.Info("ready", zap.Int("users", len(rows)), zap.String("engine", d.config.Engine), zap.String("run_dir", d.config.RunDir))
	return d.keepUsers(ctx)
}

// noteErr puts an error that nobody waits for into the log.
func (d *daemon) noteErr(what string, err error) {
	if err != nil {
		d.log.Error(what, zap.Error(err))
	}
}
