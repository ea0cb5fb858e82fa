# Debian's packages without root, for scripts that need more than a C compiler. To be sourced.
#
# shellcheck shell=bash

. scripts/common.sh

# Skips unless this is Debian on x86-64.
need_debian() {
    [[ $(uname -sm) == "Linux x86_64" ]] || skip "what it needs is set up for Debian on x86-64 only"
    local tool
    for tool in apt-get apt-cache dpkg-deb; do
        command -v "$tool" >/dev/null || skip "what it needs comes from Debian's packages, and $tool is missing"
    done
    debian=$(. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
}

# Lets apt work in directory $1, with the machine's sources and as if nothing were installed.
apt_init() {
    export APT_CONFIG=$1/apt.conf
    mkdir -p "$1"/{lists,archives}/partial && : >"$1/status" &&
        cat >"$APT_CONFIG" <<EOF
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
Dir::State "$1";
Dir::State::lists "$1/lists";
Dir::State::status "$1/status";
Dir::Cache "$1";
Dir::Cache::archives "$1/archives";
EOF
    apt-get -qq update
}

# Downloads packages and all they depend on.
apt_fetch() {
    apt-get -qq install --yes --download-only --no-install-recommends "$@"
}

# Unpacks what was downloaded to $1 into $2, less the paths $3...
unpack() {
    local archives=$1/archives root=$2 package
    shift 2
    for package in "$archives"/*.deb; do
        # The C library must be the one that this machine's loader belongs to.
        [[ $package != */libc6_* ]] || continue
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" "${@/#/--exclude=}" || return 1
    done
}

# Writes command $1/$2, which runs the rest with the unpacked libraries.
wrap() {
    local file=$1/$2
    shift 2
    cat >"$file" <<EOF
#!/bin/sh
root=\$(dirname "\$0")
LD_LIBRARY_PATH=\$root/usr/lib/x86_64-linux-gnu:\$root/lib/x86_64-linux-gnu exec $* "\$@"
EOF
    chmod +x "$file"
}
