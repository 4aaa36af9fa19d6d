package proxy

import (
	"context"
	"net"
	"os"
	"time"

	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/audit"
	"github.com/ds01/ds01-proxy/proxy/binds"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/proxy/images"
	"github.com/ds01/ds01-proxy/proxy/layers"
	"github.com/ds01/ds01-proxy/proxy/peercred"
	"github.com/ds01/ds01-proxy/proxy/quota"
)

// Owners says whose things are.
type Owners interface {
	// Container resolves a reference, as user's, to a container.
	Container(ctx context.Context, user, ref string) (policy.Object, error)
	// Exec resolves an exec ID; its owner is its container's.
	Exec(ctx context.Context, id string) (policy.Object, error)
	// State returns what the Engine says of itself.
	State(ctx context.Context) (*engine.State, error)
}

// Ledger is told what requests change, so that ownership is known before the
// Engine's event about it comes.
type Ledger interface {
	AddContainer(engine.Container)
	AddExec(id, containerID string)
	// BeginChange announces a removal, or a rename to name; the function returned
	// is called with the outcome.
	BeginChange(id, name string) (end func(done bool))
}

// Resources says whose networks and volumes are.
type Resources interface {
	// Network resolves a reference, as user's, to a network.
	Network(ctx context.Context, user, ref string) (policy.Object, error)
	// Volume looks a volume up by its name.
	Volume(ctx context.Context, name string) (policy.Object, error)
	// ReserveVolume makes a volume with these labels, or finds the one that has
	// the name; made tells which, by the mark in the labels.
	ReserveVolume(ctx context.Context, name string, labels map[string]string) (obj policy.Object, made bool, err error)
}

// Catalog lists what the Engine has beside containers.
type Catalog interface {
	Networks(ctx context.Context) ([]engine.Network, error)
	// ImageConfig returns what an image says of its containers.
	ImageConfig(ctx context.Context, image string) (engine.ImageConfig, error)
	// Owner returns the owner of a network or volume that an event is about.
	Owner(ctx context.Context, kind, id string, last bool) (owner string, known bool)
}

// Census counts a user's containers by state.
type Census interface {
	States(ctx context.Context, user string) (map[string]int, error)
}

// Index answers from memory what labels alone do not tell.
type Index interface {
	// Filters reports whether the Engine's label filters find a user's containers.
	Filters(user string) bool
	// OwnerOf returns the owner of a container that is known.
	OwnerOf(id string) (owner string, known bool)
}

// Names knows the networks that the Engine has under another name than their
// owner, since two users may use one name.
type Names interface {
	// Renamed returns a user's names by the Engine's.
	Renamed(ctx context.Context, user string) (map[string]string, error)
	// AddNetwork is told of a network just made.
	AddNetwork(user, name, shown string)
}

// Images is what the Engine knows about images.
type Images interface {
	All(ctx context.Context) (engine.ImageList, error)
	// Containers lists those that stand on an image.
	Containers(ctx context.Context, imageID string) ([]engine.Container, error)
	// Explain returns the Engine's words for an image that it does not have.
	Explain(ctx context.Context, ref string) error
}

// Registry asks registries, with a client's credentials, and removes what a prune
// found.
type Registry interface {
	// Digest returns what a name stands for.
	Digest(ctx context.Context, name, auth string) (string, error)
	// Platform returns an image's operating system and architecture.
	Platform(ctx context.Context, imageID string) (string, error)
	// Remove removes an image that no container uses.
	Remove(ctx context.Context, ref string, noprune bool) ([]engine.Removed, error)
}

// Tags says who wrote the names of images.
type Tags interface {
	// Begin reserves names for a user, some of them together with others.
	Begin(user string, own, shared []string) (end func(), err error)
	Writer(tag string) (w images.Writer, known bool)
	// Builders returns who brought an image.
	Builders(imageID string) []string
}

// Writings remembers who wrote the names of images, over restarts.
type Writings interface {
	Wrote(user string, pulled bool, tags []string) error
	Built(user, imageID string) error
}

// Forgetter forgets what is not there any more.
type Forgetter interface {
	Forget(tags []string) error
	Keep(exists func(tagOrID string) bool) error
}

// Directory says who users are. Answers come from memory or a cache.
type Directory interface {
	// ByUID returns the subject of a uid that is served.
	ByUID(uid uint32) (policy.Subject, error)
	// ByName returns the subject of a user who is served.
	ByName(name string) (policy.Subject, error)
}

// Recorder keeps audit records.
type Recorder interface {
	Record(*audit.Record)
	Panic(route string, value any, stack []byte)
}

// Peers identifies the process on the other end of a connection.
type Peers interface {
	// Read identifies the peer of a connection that was accepted at that time.
	Read(c *net.UnixConn, accepted time.Duration) (peercred.Peer, error)
	// Within reports whether the peer is where the container's first process is.
	Within(p peercred.Peer, pid int) (bool, error)
	// Groups returns the peer's supplementary groups.
	Groups(c *net.UnixConn) ([]uint32, error)
}

// Stage puts paths of the host where containers can have them.
type Stage interface {
	// Add stages a file and returns where.
	Add(f *os.File, b binds.Bind) (path string, err error)
	// Use says that a container of an owner's uses staged binds.
	Use(containerID, owner string, tokens []string) error
	Drop(token string) error
}

// Staged says what is staged.
type Staged interface {
	// Of returns the binds of a container.
	Of(containerID string) []binds.Bind
	// Source returns what users call a path in the staging directory.
	Source(path string) (source string, ok bool)
	// Any reports whether anything is staged.
	Any() bool
}

// Remounter mounts anew what has come off.
type Remounter interface {
	// Ready makes sure that a bind is mounted.
	Ready(b binds.Bind) error
}

// Users knows the users of images.
type Users interface {
	// Lookup returns the ids of a user, written as for docker run --user.
	Lookup(ctx context.Context, imageID, user string) (uid, gid uint32, err error)
}

// Processes says what a container runs, and on what.
type Processes interface {
	// FirstProcess returns the pid of a container's first process, 0 where the
	// container does not run.
	FirstProcess(ctx context.Context, containerID string) (int, error)
	// Destinations returns where a container has its mounts.
	Destinations(ctx context.Context, containerID string) ([]string, error)
}

// Layouts says where a container is on the host.
type Layouts interface {
	Layout(ctx context.Context, containerID string) (engine.Layout, error)
}

// Links keeps the Engine from following links of containers on the host.
type Links interface {
	// Seal makes layers follow no links, for what the Engine reads of them.
	Seal(dataRoot string) error
	// Hold begins to keep the mounts of one request from following links.
	Hold(dataRoot, merged string, sources []string) (*layers.Hold, error)
	// InUse reports whether an unmounted container is still reached by somebody.
	InUse(dataRoot, merged string) (bool, error)
}

// Switches say what happens where the proxy cannot know.
type Switches struct {
	UnownedContainers policy.Switch
	// UnownedResources is about networks and volumes.
	UnownedResources policy.Switch
	UnknownRoutes    policy.Switch
	// ContainerRoot is about containers that run as root, or as whoever they like, where
	// the Engine maps no users.
	ContainerRoot policy.Switch
	// CgroupErrors is about users whose use cannot be read, or whose slice cannot be
	// limited.
	CgroupErrors policy.Switch
	// HostLinks is about requests in which the Engine could be led out of a container by
	// links, and the daemon cannot keep it from that.
	HostLinks policy.Switch
	// BuildKit is about build sessions, whose inside the proxy does not see.
	BuildKit policy.Switch
	// RemoteBuilds is about build contexts that the Engine fetches itself.
	RemoteBuilds policy.Switch
}

// Quota decides about what users take of the machine.
type Quota interface {
	// Reserve decides about a request, and promises what it asks for until the Hold ends.
	Reserve(ctx context.Context, s *policy.Subject, ask quota.Ask) (*quota.Hold, policy.Verdict, error)
	// Report says what a user has, and may have.
	Report(ctx context.Context, s *policy.Subject) (quota.Report, error)
	// Container returns what a container holds.
	Container(ctx context.Context, id string) (quota.Container, error)
}

// An Allocator chooses the devices that a container is given of those that it may have.
type Allocator interface {
	// Grant returns the devices, none where the Engine is left the choice, and may write
	// into the request which they are.
	Grant(ctx context.Context, s *policy.Subject, asked policy.GPUAsk, req *container.CreateRequest) ([]string, error)
}

// AsAsked grants containers the devices that they name.
type AsAsked struct{}

// Grant returns the devices that a request names.
func (AsAsked) Grant(_ context.Context, _ *policy.Subject, asked policy.GPUAsk, _ *container.CreateRequest) ([]string, error) {
	if asked.All {
		return nil, nil
	}
	return asked.Devices, nil
}

// Slices makes sure that a user's slice is there, with its limits.
type Slices interface {
	Ensure(ctx context.Context, s *policy.Subject, a *policy.Aggregate) error
}

// Limits says what users may take.
type Limits interface {
	Of(user, group string) policy.Limits
}

// Options are what a Server is made of. All fields must be set.
type Options struct {
	// Engine is the path of the Engine's Unix socket.
	Engine    string
	Owners    Owners
	Ledger    Ledger
	Resources Resources
	Catalog   Catalog
	Census    Census
	Names     Names
	Index     Index
	Images    Images
	Registry  Registry
	Tags      Tags
	Writings  Writings
	Forgetter Forgetter
	Stage     Stage
	Staged    Staged
	Remounter Remounter
	Users     Users
	Directory Directory
	Recorder  Recorder
	Peers     Peers
	Processes Processes
	Links     Links
	Layouts   Layouts
	Switches  Switches
	Networks  policy.NetworkRules
	Quota     Quota
	GPUs      Allocator
	Slices    Slices
	Limits    Limits
	// StageDir is the staging directory, Private the server's own ones, which are never
	// bound, SocketOf the path of a user's socket, and Shared that of everybody's.
	StageDir string
	Private  []string
	SocketOf func(user string) string
	Shared   string
	// ImageMode says who sees what a user built.
	ImageMode policy.Visibility
	Log       *zap.Logger
	// Now is the clock.
	Now func() time.Time
}
