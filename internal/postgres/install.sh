#!/bin/sh
# Sees to it that there is a PostgreSQL server for hub to start: `make postgres`, before `make run` and `make test`.
#
# Where one is there already (the places of find.go), it does nothing. Otherwise, on Debian and Ubuntu:
#   as root, or with a sudo that asks for no password: installs the distribution's newest postgresql-NN, without the
#     cluster and the running server that come with it as a rule;
#   as anybody else: unpacks the same packages into ~/.cache/hub/postgresql, where hub looks, too. Nothing is installed.
#
# HUB_POSTGRES_FORCE_UNPACK=1 does the latter in any case.
set -eu

min_major=15
force=${HUB_POSTGRES_FORCE_UNPACK:-}
unpacked=${HOME:-}/.cache/hub/postgresql

say() { echo "postgres: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# --- Is one there? ----------------------------------------------------------------------------------------------------

# library_path ROOT: where the libraries of an unpacked tree are (as unpackedEnv in find.go has it).
library_path() {
	path=
	for dir in "$1"/usr/lib/*-linux-* "$1"/lib/*-linux-*; do
		if [ -d "$dir" ]; then path=$path${path:+:}$dir; fi
	done
	echo "$path"
}

# usable BIN [LD_LIBRARY_PATH]: it has a server that runs, and is new enough.
usable() {
	[ -x "$1/initdb" ] && [ -x "$1/postgres" ] || return 1
	version=$(LD_LIBRARY_PATH=${2:-${LD_LIBRARY_PATH:-}} "$1/postgres" --version 2>/dev/null) || return 1
	major=${version#*"(PostgreSQL) "} # "postgres (PostgreSQL) 15.18 (Debian ...)"
	major=${major%%[!0-9]*}
	[ "${major:-0}" -ge "$min_major" ]
}

usable_unpacked() {
	for bin in "$1"/usr/lib/postgresql/*/bin; do
		if usable "$bin" "$(library_path "$1")"; then return 0; fi
	done
	return 1
}

usable_system() {
	for bin in /usr/lib/postgresql/*/bin /usr/local/pgsql/bin; do
		if usable "$bin"; then return 0; fi
	done
	if program=$(command -v postgres) && usable "$(dirname "$(readlink -f "$program")")"; then return 0; fi
	if command -v pg_config >/dev/null && usable "$(pg_config --bindir 2>/dev/null)"; then return 0; fi
	return 1
}

# --- Which one to get? ------------------------------------------------------------------------------------------------

# newest: the newest server package that apt can get, or nothing if its lists are empty or too old.
newest() {
	for number in $(apt-cache pkgnames postgresql- | sed -n 's/^postgresql-\([0-9][0-9]*\)$/\1/p' | sort -rn); do
		if [ "$number" -lt "$min_major" ]; then return; fi
		if is_available "postgresql-$number"; then
			echo "postgresql-$number"
			return
		fi
	done
}

# A name alone may be one that other packages merely mention.
is_available() {
	apt-cache policy "$1" | grep -q '^  Candidate: [0-9]'
}

none_to_get() {
	die "apt knows no PostgreSQL $min_major or newer. See https://wiki.postgresql.org/wiki/Apt for newer packages, or set DATABASE_URL."
}

# --- As root ----------------------------------------------------------------------------------------------------------

install_packages() {
	export DEBIAN_FRONTEND=noninteractive
	package=$(newest)
	if [ -z "$package" ]; then
		say "updating apt's lists of packages"
		apt-get -qq update || say "not all of them could be updated"
		package=$(newest)
	fi
	if [ -z "$package" ]; then none_to_get; fi
	say "installing $package (without a cluster, without starting anything)"

	trap restore EXIT
	trap 'exit 1' HUP INT TERM
	forbid_services
	install_quietly postgresql-common # brings the file that the next step is about
	forbid_cluster
	install_quietly "$package"
	restore
	trap - EXIT HUP INT TERM
	usable_system || die "$package is installed, but its server does not run"
}

# A list that has grown old names packages that are gone from the mirrors: then once more with a new one.
install_quietly() {
	if apt-get -qq -y --no-install-recommends install "$1" >/dev/null 2>&1; then return; fi
	apt-get -qq update || true
	apt-get -qq -y --no-install-recommends install "$1" >/dev/null || die "apt-get could not install $1"
}

createcluster=/etc/postgresql-common/createcluster.conf
policy=/usr/sbin/policy-rc.d

# What Debian's packages ask before they start a service; 101 is "forbidden". Containers have one as a rule.
forbid_services() {
	if [ -e "$policy" ]; then return; fi
	made_policy=yes
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
}

forbid_cluster() {
	# There already? Then an earlier run was killed, and that one is the original.
	[ -e "$createcluster.hub" ] || cp -p "$createcluster" "$createcluster.hub"
	changed_createcluster=yes
	echo 'create_main_cluster = false' >>"$createcluster"
}

restore() {
	if [ -n "${changed_createcluster:-}" ]; then mv "$createcluster.hub" "$createcluster"; fi
	if [ -n "${made_policy:-}" ]; then rm -f "$policy"; fi
	changed_createcluster='' made_policy=''
}

# --- As anybody else --------------------------------------------------------------------------------------------------

unpack_packages() {
	[ -n "${HOME:-}" ] || die "HOME is not set, so there is no place to unpack PostgreSQL into"
	say "downloading PostgreSQL into $unpacked (nothing is installed)"
	mkdir -p "$(dirname "$unpacked")"
	work=$(mktemp -d "$unpacked.new.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/root"
	use_own_apt

	# Hooks of the system fail without root, and so may other people's lists: what counts is whether a server can be had.
	apt-get -qq update >"$work/update.log" 2>&1 || true
	package=$(newest)
	if [ -z "$package" ]; then
		cat "$work/update.log" >&2
		none_to_get
	fi
	download "$package"
	unpack
	# The compiler for long queries wants LLVM, 100 MB; hub switches it off.
	rm -rf "$work"/root/usr/lib/postgresql/*/lib/llvmjit* "$work"/root/usr/lib/postgresql/*/lib/bitcode
	if [ -n "$(missing_libraries)" ]; then
		# shellcheck disable=SC2046 # several names
		download $(library_packages "$package")
		unpack
	fi
	missing=$(missing_libraries)
	if [ -n "$missing" ]; then die "$package lacks libraries: $missing"; fi
	usable_unpacked "$work/root" || die "the server of $package does not run here"

	# Root's hub runs it as somebody else; and whole or not at all is how others get to see it.
	chmod 755 "$work/root"
	if usable_unpacked "$unpacked"; then return; fi # somebody else was quicker
	if [ -e "$unpacked" ]; then mv -T "$unpacked" "$work/old"; fi
	mv -T "$work/root" "$unpacked"
}

# Lists and a cache of our own, since only root may write the system's. What the system has installed, anybody may read.
use_own_apt() {
	cat >"$work/apt.conf" <<-END
		Dir::State "$work/state";
		Dir::State::status "/var/lib/dpkg/status";
		Dir::Cache "$work/cache";
		APT::Sandbox::User "root"; # not _apt, who may not write here
	END
	export APT_CONFIG="$work/apt.conf"
}

download() {
	(cd "$work/debs" && apt-get -qq download "$@") >"$work/download.log" 2>&1 || {
		cat "$work/download.log" >&2
		die "the download failed"
	}
}

unpack() {
	for deb in "$work"/debs/*.deb; do
		dpkg -x "$deb" "$work/root"
		rm "$deb"
	done
}

# missing_libraries: those that the server wants, and that neither the system nor the tree has.
missing_libraries() {
	set -- "$work"/root/usr/lib/postgresql/*/bin/postgres "$work"/root/usr/lib/postgresql/*/bin/initdb \
		"$work"/root/usr/lib/postgresql/*/lib/*.so
	LD_LIBRARY_PATH=$(library_path "$work/root") ldd "$@" 2>/dev/null |
		sed -n 's/^[[:space:]]*\([^ ]*\) => not found$/\1/p' | sort -u | tr '\n' ' '
}

# library_packages PACKAGE: the libraries that it depends on, and those that they depend on, as far as the system lacks
# them. Its other dependencies are for a proper installation, and would bring libraries of their own.
library_packages() {
	seen=' '
	wanted=$(libraries_of "$1")
	while [ -n "$wanted" ]; do
		next=
		for library in $wanted; do
			case $seen in *" $library "*) continue ;; esac
			seen="$seen$library "
			if is_installed "$library" || ! is_available "$library"; then continue; fi
			echo "$library"
			next="$next $(libraries_of "$library")"
		done
		wanted=$next
	done
}

libraries_of() {
	apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$1" |
		sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \(lib.*\)$/\2/p' | grep -v '^libllvm' || true
}

is_installed() {
	# shellcheck disable=SC2016 # dpkg's syntax, not ours
	dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

# --- The way ----------------------------------------------------------------------------------------------------------

if [ -n "$force" ]; then
	if usable_unpacked "$unpacked"; then exit 0; fi
elif usable_system || usable_unpacked "$unpacked"; then
	exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
	die "no PostgreSQL $min_major or newer was found, and without apt-get this script cannot get one. Install your system's package" \
		"(postgresql-server, postgresql), name the directory of initdb and postgres with --postgres-bin, or set DATABASE_URL to use" \
		"a server that runs already."
fi
if [ -n "$force" ]; then
	unpack_packages
elif [ "$(id -u)" = 0 ]; then
	install_packages
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
	exec sudo -n sh "$0"
else
	unpack_packages
fi
