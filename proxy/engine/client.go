// Package engine is what the proxy itself asks the Docker Engine: whose a
// container is, and what kind of Engine it is.
package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ds01/ds01-proxy/policy"
)

// Errors that callers tell apart.
var (
	// ErrNotFound means that the Engine knows no such object; the text that
	// comes with it is the Engine's.
	ErrNotFound = errors.New("not found")
	// ErrUnreachable means that the Engine did not answer.
	ErrUnreachable = errors.New("the Docker Engine does not answer")
)

// A StatusError is an answer of the Engine that is neither success nor 404.
type StatusError struct {
	Status  int
	Message string
}

// Error returns the Engine's message.
func (e *StatusError) Error() string { return e.Message }

// questionTimeout bounds one question to the Engine. A list of thousands of
// containers on a loaded server takes seconds.
const questionTimeout = 30 * time.Second

// A Client asks the Engine on behalf of the proxy.
type Client struct {
	http *http.Client
	// prefix is the API version that questions are asked in. Every Engine from
	// 1.13 (API 1.24) to those whose minimum is 1.44 speaks the one it names as
	// its own, so the unversioned form serves for the proxy's own questions.
	prefix string
}

// NewClient returns a client of the Engine that listens on the Unix socket.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{
		prefix: "http://engine",
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return d.DialContext(ctx, "unix", socket)
				},
				DisableCompression:  true,
				MaxIdleConnsPerHost: 4,
				IdleConnTimeout:     time.Minute,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// get asks for path and leaves the body of a success to the caller.
func (c *Client) get(ctx context.Context, path string) (*http.Response, error) {
	return c.send(ctx, http.MethodGet, path, nil)
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.prefix+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask the Engine for %s: %w", path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.do(req)
}

// do sends a request and leaves the body of a success to the caller.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var e struct{ Message string }
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(text, &e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("the Engine answered %s", resp.Status)
	}
	if resp.StatusCode < http.StatusBadRequest {
		// Redirects are not followed, nor anybody's to see.
		resp.StatusCode = http.StatusBadGateway
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, &StatusError{resp.StatusCode, e.Message})
	}
	return nil, &StatusError{resp.StatusCode, e.Message}
}

// getJSON asks for path and decodes the answer.
func (c *Client) getJSON(ctx context.Context, path string, out any) error {
	return c.sendJSON(ctx, http.MethodGet, path, nil, out)
}

// postJSON sends in and decodes the answer.
func (c *Client) postJSON(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("ask the Engine for %s: %w", path, err)
	}
	return c.sendJSON(ctx, http.MethodPost, path, bytes.NewReader(body), out)
}

func (c *Client) sendJSON(ctx context.Context, method, path string, in io.Reader, out any) error {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return fmt.Errorf("answer to %s: %w", path, err)
	}
	// What follows the JSON is read so that the connection can serve again.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	return nil
}

// Version is what the proxy needs to know of /version.
type Version struct {
	Version       string
	APIVersion    string `json:"ApiVersion"`
	MinAPIVersion string
}

// Version asks for the Engine's version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.getJSON(ctx, "/version", &v)
	return v, err
}

// Info is what the proxy needs to know of /info.
type Info struct {
	// CgroupDriver is systemd, cgroupfs or none.
	CgroupDriver string
	// DataRoot is where the Engine keeps everything.
	DataRoot string `json:"DockerRootDir"`
	// SecurityOptions has name=userns where the Engine maps users.
	SecurityOptions []string
	// NCPU is how many CPUs the Engine sees, and DefaultRuntime what runs containers that
	// name none.
	NCPU           int
	DefaultRuntime string
	// Driver keeps layers, and DriverStatus is what it says of itself, in pairs.
	Driver       string
	DriverStatus [][]string
}

// Host is what rules about limits must know of the machine.
func (i Info) Host() policy.Host {
	return policy.Host{CPUs: i.NCPU, DefaultRuntime: i.DefaultRuntime}
}

// Remap returns the ids that a container's root has on the host where the Engine maps
// users (dockerd --userns-remap), and zeros where it does not: the Engine's directory
// is then called after them (daemon/daemon_unix.go, setupDaemonRoot).
func (i Info) Remap() (uid, gid uint32, err error) {
	if !slices.ContainsFunc(i.SecurityOptions, func(o string) bool { return o == "userns" || o == "name=userns" }) {
		return 0, 0, nil
	}
	u, g, _ := strings.Cut(path.Base(i.DataRoot), ".")
	wide, uerr := strconv.ParseUint(u, 10, 32)
	group, gerr := strconv.ParseUint(g, 10, 32)
	if uerr != nil || gerr != nil || wide == 0 {
		return 0, 0, fmt.Errorf("the Engine maps users, and its directory %q does not say to whom", i.DataRoot)
	}
	return uint32(wide), uint32(group), nil
}

// Info asks for what the Engine says of itself.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	err := c.getJSON(ctx, "/info", &info)
	return info, err
}

// A Container is what decides about a container: whose it is, and its names.
type Container struct {
	ID     string
	Names  []string
	Labels map[string]string
	// Image is what the container was made of, as its maker called it.
	Image string
	// CgroupParent is only known where one container was asked for.
	CgroupParent string `json:"-"`
}

// EachContainer calls f for every container, running or not. What a container's
// labels are is read one container at a time: users choose their size.
func (c *Client) EachContainer(ctx context.Context, f func(Container)) error {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	resp, err := c.get(ctx, "/containers/json?all=1")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	switch open, err := dec.Token(); {
	case err != nil:
		return fmt.Errorf("%w: list of containers: %w", ErrUnreachable, err)
	case open == nil:
		// null is an empty list.
		return nil
	case open != json.Delim('['):
		return fmt.Errorf("%w: the list of containers is not a list", ErrUnreachable)
	}
	for dec.More() {
		var one Container
		if err := dec.Decode(&one); err != nil {
			return fmt.Errorf("%w: list of containers: %w", ErrUnreachable, err)
		}
		f(one)
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("%w: list of containers: %w", ErrUnreachable, err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	return nil
}

// Inspect asks for one container, by ID, name or unique prefix.
func (c *Client) Inspect(ctx context.Context, ref string) (Container, error) {
	var one struct {
		ID, Name   string
		HostConfig struct{ CgroupParent string }
		Config     struct {
			Image  string
			Labels map[string]string
		}
	}
	if err := c.getJSON(ctx, "/containers/"+url.PathEscape(ref)+"/json", &one); err != nil {
		return Container{}, err
	}
	if one.ID == "" {
		return Container{}, fmt.Errorf("inspect of container %q: the answer has no ID", ref)
	}
	return Container{ID: one.ID, Names: []string{one.Name}, Labels: one.Config.Labels, Image: one.Config.Image, CgroupParent: one.HostConfig.CgroupParent}, nil
}

// FirstProcess asks for the pid of a container's first process, 0 where the
// container does not run.
func (c *Client) FirstProcess(ctx context.Context, id string) (int, error) {
	var one struct{ State struct{ Pid int } }
	err := c.getJSON(ctx, "/containers/"+url.PathEscape(id)+"/json", &one)
	return one.State.Pid, err
}

// Destinations asks where a container has its mounts.
func (c *Client) Destinations(ctx context.Context, id string) ([]string, error) {
	var one struct {
		Mounts []struct{ Destination string }
	}
	err := c.getJSON(ctx, "/containers/"+url.PathEscape(id)+"/json", &one)
	paths := make([]string, 0, len(one.Mounts))
	for _, m := range one.Mounts {
		paths = append(paths, m.Destination)
	}
	return paths, err
}

// Exec asks which container an exec runs in.
func (c *Client) Exec(ctx context.Context, id string) (containerID string, err error) {
	var one struct{ ContainerID string }
	err = c.getJSON(ctx, "/exec/"+url.PathEscape(id)+"/json", &one)
	return one.ContainerID, err
}
