package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/limits"
	"github.com/ds01/ds01-proxy/proxy/users"
)

// defaultConfigPath is read where no --config is given; it need not exist.
const defaultConfigPath = "/etc/ds01-proxy/config.yaml"

//go:embed default.yaml
var defaultConfig []byte

// config is the configuration file. default.yaml says what the keys mean.
type config struct {
	Engine            string            `yaml:"engine"`
	RunDir            string            `yaml:"run_dir"`
	SharedSocket      *string           `yaml:"shared_socket,omitempty"`
	StateDir          string            `yaml:"state_dir"`
	AuditLog          string            `yaml:"audit_log,omitempty"`
	LimitsFile        string            `yaml:"limits_file"`
	Users             usersConfig       `yaml:"users"`
	Admins            adminsConfig      `yaml:"admins"`
	Enforcement       string            `yaml:"enforcement"`
	EnforcementGroups map[string]string `yaml:"enforcement_groups"`
	EnforcementUsers  map[string]string `yaml:"enforcement_users"`
	Profile           string            `yaml:"profile"`
	ProfileGroups     map[string]string `yaml:"profile_groups"`
	ProfileUsers      map[string]string `yaml:"profile_users"`
	// Profiles are the configuration's own, beside those that are built in.
	Profiles          map[string]yaml.Node `yaml:"profiles,omitempty"`
	Preset            string               `yaml:"preset"`
	UnownedContainers string               `yaml:"unowned_containers"`
	UnownedResources  string               `yaml:"unowned_resources"`
	Images            string               `yaml:"images"`
	UnknownRoutes     string               `yaml:"unknown_routes"`
	ContainerRoot     string               `yaml:"container_root"`
	OnCgroupError     string               `yaml:"on_cgroup_error"`
	HostLinks         string               `yaml:"host_links"`
	Quota             quotaConfig          `yaml:"quota"`
	Networks          networksConfig       `yaml:"networks"`
	Builds            buildsConfig         `yaml:"builds"`

	// root is the file, read are the profiles and policies what the rules see of them.
	root     yaml.Node
	read     profiles
	policies map[string]*policy.Profile
	// only are the users of --user.
	only []users.Account
}

type usersConfig struct {
	UIDMin  int64    `yaml:"uid_min"`
	UIDMax  int64    `yaml:"uid_max"`
	Include []string `yaml:"include"`
	Groups  []string `yaml:"groups"`
	Exclude []string `yaml:"exclude"`
	Refresh string   `yaml:"refresh"`
}

type networksConfig struct {
	Pools      []string `yaml:"pools"`
	MaxPerUser int      `yaml:"max_per_user"`
}

type buildsConfig struct {
	BuildKit string `yaml:"buildkit"`
	Remote   string `yaml:"remote"`
}

type adminsConfig struct {
	Users  []string `yaml:"users"`
	Groups []string `yaml:"groups"`
}

// problems are what is wrong with a file, each with its place.
type problems []string

func (p problems) Error() string { return strings.Join(p, "\n") }

// loadConfig reads the file at path over the embedded default. A missing file
// is an error only where mustExist is set.
func loadConfig(path string, mustExist bool) (*config, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !mustExist {
		return parseConfig("(built-in default)", nil)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return parseConfig(path, text)
}

// parseConfig decodes strictly, fills in defaults, validates everything and
// reports all problems together.
func parseConfig(name string, text []byte) (*config, error) {
	c := &config{}
	if err := yaml.Unmarshal(defaultConfig, c); err != nil {
		return nil, fmt.Errorf("built-in configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	var found problems
	var bad *yaml.TypeError
	switch err := dec.Decode(c); {
	case errors.Is(err, io.EOF):
	case errors.As(err, &bad):
		for _, e := range bad.Errors {
			found = append(found, name+": "+wordYAML(e))
		}
	case err != nil:
		return nil, problems{name + ": " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err == nil {
		if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
			found = append(found, name+": more than one YAML document; keep the first")
		}
	}
	c.root = root
	var wrong problems
	c.read, wrong = readProfiles(c.Profiles)
	for _, p := range append(wrong, c.validate(&root)...) {
		found = append(found, fmt.Sprintf("%s: %s", name, p))
	}
	if len(found) > 0 {
		return nil, found
	}
	c.policies = make(map[string]*policy.Profile, len(c.read))
	for name, p := range c.read {
		c.policies[name] = p.policy(name)
	}
	if c.Preset == "strict" {
		c.UnownedContainers, c.UnownedResources, c.UnknownRoutes, c.ContainerRoot, c.OnCgroupError, c.HostLinks = "deny", "deny", "deny", "deny", "deny", "deny"
	}
	return c, nil
}

// wordYAML makes the decoder's message readable to somebody who never saw Go.
func wordYAML(e string) string {
	if i := strings.Index(e, " not found in type "); i >= 0 {
		e = strings.Replace(e[:i], "field ", "unknown key ", 1)
	}
	return strings.Replace(e, "main.publishFile", "keys such as min_port", 1)
}

// lineOf returns "line N: " for the value at the path of keys, or "" where the
// file does not have it.
func lineOf(root *yaml.Node, keys ...string) string {
	n := root
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	for _, key := range keys {
		next := (*yaml.Node)(nil)
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Kind == yaml.MappingNode && n.Content[i].Value == key {
				next = n.Content[i+1]
			}
		}
		if next == nil {
			return ""
		}
		n = next
	}
	return "line " + strconv.Itoa(n.Line) + ": "
}

// validate returns every problem of the configuration.
func (c *config) validate(root *yaml.Node) problems {
	var out problems
	say := func(keys []string, format string, args ...any) {
		out = append(out, lineOf(root, keys...)+strings.Join(keys, ".")+": "+fmt.Sprintf(format, args...))
	}
	if sock, ok := strings.CutPrefix(c.Engine, "unix://"); !ok || !filepath.IsAbs(sock) {
		say([]string{"engine"}, "%q is not unix:// followed by an absolute path", c.Engine)
	}
	absolute := func(key, value string) {
		if !filepath.IsAbs(value) {
			say([]string{key}, "%q is not an absolute path", value)
		}
	}
	absolute("run_dir", c.RunDir)
	absolute("state_dir", c.StateDir)
	absolute("limits_file", c.LimitsFile)
	if c.SharedSocket != nil && *c.SharedSocket != "" {
		absolute("shared_socket", *c.SharedSocket)
		if "unix://"+*c.SharedSocket == c.Engine {
			say([]string{"shared_socket"}, "is the Engine's own socket; the Engine must listen elsewhere for that")
		}
	}
	if c.AuditLog != "" && c.AuditLog != "stderr" {
		absolute("audit_log", c.AuditLog)
	}
	for _, u := range []struct {
		key   string
		value int64
	}{{"uid_min", c.Users.UIDMin}, {"uid_max", c.Users.UIDMax}} {
		if u.value < 1 || u.value >= math.MaxUint32 {
			say([]string{"users", u.key}, "%d is not a uid from 1 to %d", u.value, uint32(math.MaxUint32-1))
		}
	}
	if c.Users.UIDMin > c.Users.UIDMax {
		say([]string{"users", "uid_min"}, "%d is above uid_max %d", c.Users.UIDMin, c.Users.UIDMax)
	}
	if d, err := time.ParseDuration(c.Users.Refresh); err != nil || d < time.Second {
		say([]string{"users", "refresh"}, "%q is not a duration of a second or more, such as 30s", c.Users.Refresh)
	}
	if _, err := policy.ParseMode(c.Enforcement); err != nil {
		say([]string{"enforcement"}, "%v", err)
	}
	for _, m := range []struct {
		key   string
		modes map[string]string
	}{{"enforcement_groups", c.EnforcementGroups}, {"enforcement_users", c.EnforcementUsers}} {
		names := make([]string, 0, len(m.modes))
		for name := range m.modes {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			if _, err := policy.ParseMode(m.modes[name]); err != nil {
				say([]string{m.key, name}, "%v", err)
			}
		}
	}
	for _, m := range []struct {
		key   string
		names map[string]string
	}{{"profile_groups", c.ProfileGroups}, {"profile_users", c.ProfileUsers}} {
		for _, who := range slices.Sorted(maps.Keys(m.names)) {
			if c.read[m.names[who]] == nil {
				say([]string{m.key, who}, "there is no profile %q", m.names[who])
			}
		}
	}
	if c.read[c.Profile] == nil {
		say([]string{"profile"}, "there is no profile %q", c.Profile)
	}
	for _, q := range c.Quota.choices() {
		if !slices.Contains(q.allowed, q.value) {
			say([]string{"quota", q.key}, "%q is none of %s", q.value, strings.Join(q.allowed, ", "))
		}
	}
	for _, s := range []struct{ key, value string }{
		{"unowned_containers", c.UnownedContainers}, {"unowned_resources", c.UnownedResources}, {"unknown_routes", c.UnknownRoutes}, {"container_root", c.ContainerRoot},
		{"on_cgroup_error", c.OnCgroupError}, {"host_links", c.HostLinks},
	} {
		if _, err := policy.ParseSwitch(s.value); err != nil {
			say([]string{s.key}, "%v", err)
		} else if c.Preset == "strict" && s.value != "deny" && lineOf(root, s.key) != "" {
			say([]string{s.key}, "contradicts preset: strict, which denies it; remove one of the two")
		}
	}
	for _, s := range []struct{ key, value string }{{"buildkit", c.Builds.BuildKit}, {"remote", c.Builds.Remote}} {
		if _, err := policy.ParseSwitch(s.value); err != nil {
			say([]string{"builds", s.key}, "%v", err)
		}
	}
	for _, text := range c.Networks.Pools {
		if _, err := netip.ParsePrefix(text); err != nil {
			say([]string{"networks", "pools"}, "%q is not an address range such as 10.200.0.0/16", text)
		}
	}
	if c.Networks.MaxPerUser < 0 {
		say([]string{"networks", "max_per_user"}, "%d is below 0; 0 means no limit", c.Networks.MaxPerUser)
	}
	if c.Images != "shared" && c.Images != "private" {
		say([]string{"images"}, "%q is neither shared nor private", c.Images)
	}
	if c.Preset != "compatible" && c.Preset != "strict" {
		say([]string{"preset"}, "%q is neither compatible nor strict", c.Preset)
	}
	return out
}

// enginePath is the path of the Engine's socket.
func (c *config) enginePath() string { return strings.TrimPrefix(c.Engine, "unix://") }

// sharedPath is the path of the shared socket, or "" for none.
func (c *config) sharedPath() string {
	if c.SharedSocket != nil {
		return *c.SharedSocket
	}
	return filepath.Join(c.RunDir, "docker.sock")
}

// auditPath is the path of the audit log, or "stderr".
func (c *config) auditPath() string {
	if c.AuditLog != "" {
		return c.AuditLog
	}
	return filepath.Join(c.StateDir, "audit.jsonl")
}

// refresh is how often accounts are read. The value was validated.
func (c *config) refresh() time.Duration {
	d, err := time.ParseDuration(c.Users.Refresh)
	if err != nil {
		return 30 * time.Second
	}
	return d
}

// visibilityOf is who sees the images that a user built; anything but shared hides.
func visibilityOf(s string) policy.Visibility {
	if s == "shared" {
		return policy.ImagesShared
	}
	return policy.ImagesPrivate
}

// switchOf and modeOf read values that were validated; what is not valid denies
// and enforces.
func switchOf(s string) policy.Switch {
	v, err := policy.ParseSwitch(s)
	if err != nil {
		return policy.SwitchDeny
	}
	return v
}

func (c *config) modeOf(user, group string) policy.Mode {
	text := c.Enforcement
	if m, ok := c.EnforcementGroups[group]; ok {
		text = m
	}
	if m, ok := c.EnforcementUsers[user]; ok {
		text = m
	}
	m, err := policy.ParseMode(text)
	if err != nil {
		return policy.ModeFull
	}
	return m
}

// networkRules are the limits of networks that users make.
func (c *config) networkRules() policy.NetworkRules {
	rules := policy.NetworkRules{MaxPerUser: c.Networks.MaxPerUser}
	for _, text := range c.Networks.Pools {
		if pool, err := netip.ParsePrefix(text); err == nil {
			rules.Pools = append(rules.Pools, pool.Masked())
		}
	}
	return rules
}

// rules are the directory's, with the groups and admins of the limits file.
func (c *config) rules(l *limits.Store) users.Rules {
	adminUsers, adminGroups := l.Admins()
	return users.Rules{
		Only:        c.only,
		UIDMin:      uint32(c.Users.UIDMin),
		UIDMax:      uint32(c.Users.UIDMax),
		Users:       c.Users.Include,
		Groups:      c.Users.Groups,
		Exclude:     c.Users.Exclude,
		AdminUsers:  slices.Concat(c.Admins.Users, adminUsers),
		AdminGroups: slices.Concat(c.Admins.Groups, adminGroups),
		GroupOf:     l.GroupOf,
		ModeOf:      c.modeOf,
		ProfileOf: func(user, group string) *policy.Profile {
			name, _ := c.profileOf(user, group)
			return c.policies[name]
		},
	}
}
