"""The keys of homeserver.yaml that Synapse 1.40 and 1.163 read: facts, as a table.

Gathered by looking at which names each release's configuration classes ask for, and
checked by loading some 150 variants with 1.163.2 (``tests/render/test_adopted_config.py``
repeats those that stop it). What is here only by name keeps its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from .model import Kind


def words(text: str) -> frozenset[str]:
    """Names written one after the other."""
    return frozenset(text.split())


#: Read by both releases with the same meaning.
BOTH = words("""
account_threepid_delegates account_validity admin_contact alias_creation_rules
allow_device_name_lookup_over_federation allow_guest_access allow_per_room_profiles
allow_profile_lookup_over_federation allow_public_rooms_over_federation
allow_public_rooms_without_auth allowed_local_3pids app_service_config_files
auto_join_mxid_localpart auto_join_rooms auto_join_rooms_for_guests
autocreate_auto_join_room_preset autocreate_auto_join_rooms
autocreate_auto_join_rooms_federated bcrypt_rounds block_non_admin_invites caches cas_config
cleanup_extremities_with_dummy_events default_identity_server default_room_version
disable_msisdn_registration dummy_events_threshold dynamic_thumbnails email enable_3pid_changes
enable_3pid_lookup enable_ephemeral_messages enable_media_repo enable_metrics
enable_registration enable_registration_captcha enable_room_list_search enable_search
enable_set_avatar_url enable_set_displayname encryption_enabled_by_default_for_room_type
event_cache_size experimental_features federation_certificate_verification_whitelist
federation_client_minimum_tls_version federation_custom_ca_list federation_domain_whitelist
federation_ip_range_blacklist federation_metrics_domains
federation_rr_transactions_per_room_per_second federation_verify_certificates
filter_timeline_limit form_secret gc_min_interval gc_thresholds hs_disabled
hs_disabled_message include_profile_data_on_invite ip_range_blacklist ip_range_whitelist
jwt_config key_refresh_interval key_server_signing_keys_path
limit_profile_requests_to_users_who_share_rooms
limit_remote_rooms limit_usage_by_mau macaroon_secret_key mau_limit_alerting
mau_limit_reserved_threepids mau_stats_only mau_trial_days max_image_pixels max_mau_value
max_spider_size max_upload_size media_storage_providers metrics_flags modules
next_link_domain_whitelist oidc_config oidc_providers old_signing_keys opentracing
password_config perspectives presence public_baseurl push rc_3pid_validation
rc_admin_redaction rc_federation rc_invites rc_joins rc_key_requests rc_login rc_message
rc_registration recaptcha_private_key recaptcha_public_key recaptcha_siteverify_api
redaction_allowed_period redaction_retention_period redis registration_shared_secret
registrations_require_3pid replication_torture_level report_stats report_stats_endpoint
request_token_inhibit_3pid_errors require_auth_for_profile_requests
require_membership_for_aliases restrict_public_rooms_to_local_users retention
room_invite_state_types
room_list_publication_rules room_prejoin_state saml2_config sentry server_context
server_name server_notices session_lifetime soft_file_limit spam_checker sso stats
suppress_key_server_warning third_party_event_rules thumbnail_sizes track_appservice_user_ips
trusted_key_servers turn_allow_guests turn_password turn_shared_secret turn_uris
turn_user_lifetime turn_username ui_auth url_preview_accept_language url_preview_enabled
url_preview_ip_range_blacklist url_preview_ip_range_whitelist url_preview_url_blacklist
use_frozen_dicts use_insecure_ssl_client_just_for_testing_do_not_use user_agent_suffix
user_consent user_directory user_ips_max_age web_client_location worker_replication_secret
""")

#: Read by 1.163 and not by 1.40: in an old file they had no effect and now would.
NEW = words("""
allow_underscore_prefixed_localpart allowed_avatar_mimetypes auto_accept_invites
background_updates default_power_level_content_override delete_stale_devices_after
dont_notify_new_devices_for enable_authenticated_media enable_local_media_storage
enable_registration_token_3pid_bypass enable_registration_without_verification
exclude_rooms_from_presence exclude_rooms_from_sync extra_well_known_client_content federation
federation_whitelist_endpoint_enabled forget_rooms_on_leave forgotten_room_retention_period
http_proxy https_proxy include_profile_updates_in_sync inhibit_user_in_use_error
login_via_existing_session manhole_settings matrix_authentication_service matrix_rtc
mau_appservice_trial_days max_avatar_size max_event_delay_duration max_pending_media_uploads
media_retention media_upload_limits no_proxy_hosts nonrefreshable_access_token_lifetime oembed
prevent_media_downloads_from push_rules rc_delayed_event_mgmt rc_joins_per_room
rc_media_create rc_presence rc_profile rc_registration_token_validity rc_reports
rc_room_creation rc_third_party_invite rc_user_directory refresh_token_lifetime
refreshable_access_token_lifetime registration_requires_token
remote_media_download_burst_count remote_media_download_per_second serve_server_wellknown
task_scheduler templates track_puppeted_user_ips unused_expiration_time
use_account_validity_in_account_status use_appservice_legacy_authorization user_types
""")

#: A secret in a file of its own, and the key that holds it in line. 1.40 reads none of them.
SECRET_PATHS = {
    "form_secret_path": "form_secret",
    "macaroon_secret_key_path": "macaroon_secret_key",
    "recaptcha_private_key_path": "recaptcha_private_key",
    "recaptcha_public_key_path": "recaptcha_public_key",
    "registration_shared_secret_path": "registration_shared_secret",
    "turn_shared_secret_path": "turn_shared_secret",
    "worker_replication_secret_path": "worker_replication_secret",
}


@dataclass(frozen=True)
class Fixed:
    """A verdict that needs no look at the value."""

    verdict: Kind
    reason: str


_NEVER = Fixed("dropped-no-effect", "1.40 does not read it any more, nor does 1.163")

#: Keys whose verdict is always the same.
FIXED: dict[str, Fixed] = {
    **dict.fromkeys(
        words("""
        uploads_path acme content_addr tls_dh_params_path tls_fingerprints verbose
        expire_access_token full_twisted_stacktraces captcha_ip_origin_is_x_forwarded
        captcha_bypass_secret enable_legacy_metrics worker_replication_url
        worker_main_http_uri limit_large_remote_room_joins
        """),
        _NEVER,
    ),
    "trusted_third_party_id_servers": Fixed(
        "dropped-no-effect",
        "only trust_identity_server_for_password_resets used it, and that is gone (1.48)",
    ),
    "group_creation_prefix": Fixed(
        "dropped-no-effect", "a detail of enable_group_creation; communities are gone (1.61)"
    ),
    "pid_file": Fixed("replaced", "systemd runs Synapse in the foreground and knows its pid"),
    "daemonize": Fixed("replaced", "systemd runs Synapse in the foreground"),
    "print_pidfile": Fixed("dropped-no-effect", "it only prints a path while daemonizing"),
    "no_redirect_stdio": Fixed("replaced", "our log configuration leaves stdout to systemd"),
    "log_file": Fixed("dropped-no-effect", "stops every release since 1.3.0 that meets it"),
    "signing_key": Fixed("replaced", "kept as the secret signing_key, in a file of its own"),
    "signing_key_path": Fixed("replaced", "kept as the secret signing_key, written to our path"),
    "media_store_path": Fixed(
        "replaced", "recorded as the place of the media; 1.163 gets it from the plan"
    ),
}

#: Keys that say that more than one Synapse process runs, with the value that means "no".
WORKER_KEYS: dict[str, tuple[object, ...]] = {
    "worker_name": (),
    "worker_listeners": ([],),
    "worker_daemonize": (False,),
    "worker_pid_file": (),
    "worker_log_config": (),
    "worker_manhole": (),
    "worker_replication_host": (),
    "worker_replication_port": (),
    "worker_replication_http_port": (),
    "worker_replication_http_tls": (False,),
    "instance_map": ({},),
    "stream_writers": ({},),
    "federation_sender_instances": (["master"],),
    "pusher_instances": (["master"],),
    "run_background_tasks_on": ("master", "main"),
    "update_user_directory_from_worker": ("master", "main"),
    "notify_appservices_from_worker": ("master", "main"),
    "media_instance_running_background_jobs": (),
    "outbound_federation_restricted_to": ([],),
    "send_federation": (True,),
    "start_pushers": (True,),
    "notify_appservices": (True,),
    "update_user_directory": (True,),
}

#: Those by which the main process leaves work to others: giving the key up would leave the
#: work undone, or done twice.
SHARED_OUT = words("""
worker_listeners instance_map stream_writers federation_sender_instances pusher_instances
run_background_tasks_on update_user_directory_from_worker notify_appservices_from_worker
media_instance_running_background_jobs outbound_federation_restricted_to send_federation
start_pushers notify_appservices update_user_directory
""")

#: Top keys for which an empty value is something else than no key at all.
NULL_MEANS = words("redaction_retention_period user_ips_max_age access_token_lifetime")


@dataclass(frozen=True)
class Section:
    """The keys of a mapping, each of which gets a verdict of its own."""

    both: frozenset[str]
    new: frozenset[str]


def _section(both: str, new: str = "") -> Section:
    return Section(words(both), words(new))


_RATE = _section("per_second burst_count")
_OIDC = """
allow_existing_users attribute_requirements authorization_endpoint client_auth_method client_id
client_secret client_secret_jwt_key discover enabled idp_brand idp_icon idp_id idp_name issuer
jwks_uri scopes skip_verification token_endpoint user_mapping_provider user_profile_method
userinfo_endpoint
"""
_OIDC_NEW = """
additional_authorization_parameters backchannel_logout_enabled backchannel_logout_ignore_sub
client_secret_path enable_registration id_token_signing_alg_values_supported
passthrough_authorization_parameters pkce_method redirect_uri
"""

#: Sections by dotted path; ``[]`` stands for any place in a list.
SECTIONS: dict[str, Section] = {
    "account_threepid_delegates": _section("email msisdn"),
    "account_validity": _section(
        "account_renewed_html_path enabled invalid_token_html_path period renew_at "
        "renew_email_subject template_dir"
    ),
    "caches": _section(
        "expiry_time global_factor per_cache_factors track_memory_usage",
        "cache_autotuning cache_entry_ttl expire_caches sync_response_cache_duration",
    ),
    "cas_config": _section(
        "displayname_attribute enabled required_attributes server_url",
        "allow_numeric_ids enable_registration idp_brand idp_icon idp_name numeric_ids_prefix "
        "protocol_version",
    ),
    "email": _section(
        """
        add_threepid_template_failure_html add_threepid_template_html
        add_threepid_template_success_html add_threepid_template_text app_name client_base_url
        enable_notifs expiry_template_html expiry_template_text invite_client_location
        notif_for_new_users notif_from notif_template_html notif_template_text
        password_reset_template_failure_html password_reset_template_html
        password_reset_template_success_html password_reset_template_text
        registration_template_failure_html registration_template_html
        registration_template_success_html registration_template_text
        require_transport_security smtp_host smtp_pass smtp_port smtp_user subjects template_dir
        validation_token_lifetime
        """,
        "already_in_use_template_html enable_tls force_tls notif_delay_before_mail tlsname",
    ),
    "jwt_config": _section(
        "algorithm audiences enabled issuer secret", "display_name_claim subject_claim"
    ),
    "limit_remote_rooms": _section("admins_can_join complexity complexity_error enabled"),
    "metrics_flags": _section("known_servers"),
    "oidc_config": _section(_OIDC, _OIDC_NEW),
    "oidc_providers[]": _section(_OIDC, _OIDC_NEW),
    "opentracing": _section("enabled force_tracing_for_users homeserver_whitelist jaeger_config"),
    "password_config": _section("enabled localdb_enabled pepper policy"),
    "password_config.policy": _section(
        "enabled minimum_length require_digit require_lowercase require_symbol require_uppercase"
    ),
    "presence": _section(
        "enabled presence_router",
        "idle_timeout include_offline_users_on_sync last_active_granularity sync_online_timeout",
    ),
    "push": _section("group_unread_count_by_room include_content", "enabled jitter_delay"),
    "rc_3pid_validation": _RATE,
    "rc_admin_redaction": _RATE,
    "rc_federation": _section("concurrent reject_limit sleep_delay sleep_limit window_size"),
    "rc_invites": _section("per_room per_user", "per_issuer"),
    **dict.fromkeys(
        (
            "rc_invites.per_room", "rc_invites.per_user", "rc_invites.per_issuer",
            "rc_joins.local", "rc_joins.remote",
            "rc_login.account", "rc_login.address", "rc_login.failed_attempts",
        ),
        _RATE,
    ),
    "rc_joins": _section("local remote"),
    "rc_key_requests": _RATE,
    "rc_login": _section("account address failed_attempts"),
    "rc_message": _RATE,
    "rc_registration": _RATE,
    "redis": _section(
        "enabled host password port",
        "ca_file ca_path certificate_file dbid password_path path private_key_file use_tls "
        "username",
    ),
    "retention": _section(
        "allowed_lifetime_max allowed_lifetime_min default_policy enabled purge_jobs"
    ),
    "room_prejoin_state": _section("additional_event_types disable_default_event_types"),
    "saml2_config": _section(
        "attribute_requirements config_path enabled grandfathered_mxid_source_attribute "
        "idp_entityid mxid_mapping mxid_source_attribute saml_session_lifetime sp_config "
        "user_mapping_provider idp_name idp_icon idp_brand"
    ),
    "sentry": _section("dsn", "environment"),
    "server_notices": _section(
        "room_name system_mxid_avatar_url system_mxid_display_name system_mxid_localpart",
        "auto_join room_avatar_url room_topic",
    ),
    "sso": _section("client_whitelist template_dir update_profile_information"),
    "stats": _section("enabled"),
    "templates": _section("custom_template_directory"),
    "ui_auth": _section("session_timeout"),
    "user_consent": _section(
        "block_events_error policy_name require_at_registration send_server_notice_to_guests "
        "server_notice_content template_dir version"
    ),
    "user_directory": _section(
        "enabled prefer_local_users search_all_users", "exclude_remote_users show_locked_users"
    ),
}

#: Children that were read once and are no longer, by section.
GONE_CHILDREN: dict[str, dict[str, Fixed]] = {
    "cas_config": {"service_url": _NEVER},
    "email": {
        "enable_notif_for_new_users": _NEVER,
        "trust_identity_server_for_password_resets": _NEVER,
    },
    "oidc_providers[]": {
        "unstable_idp_brand": Fixed("dropped-no-effect", "idp_brand took its place (1.46)")
    },
    "password_config.policy": {},
    "push": {"redact_content": Fixed("dropped-no-effect", "it has never worked in this section")},
    "stats": {"bucket_size": _NEVER, "retention": _NEVER},
}

#: Experiments that 1.163 still reads; all others have ended.
EXPERIMENTS = words("""
msc1763_enabled msc1767_enabled msc2409_to_device_messages_enabled msc2654_enabled
msc2815_enabled msc3026_enabled msc3202_transaction_extensions msc3381_polls_enabled
msc3391_enabled msc3575_enabled msc3664_enabled msc3720_enabled msc3773_enabled
msc3814_enabled msc3848_enabled msc3866 msc3874_enabled msc3881_enabled msc3890_enabled
msc3912_enabled msc3983_appservice_otk_claims msc3984_appservice_key_query
msc4028_push_encrypted_events msc4069_profile_inhibit_propagation msc4075_enabled
msc4076_enabled msc4108_delegation_endpoint msc4108_enabled msc4133_enabled
msc4140_max_delayed_events_per_user msc4143_enabled msc4155_enabled msc4169_enabled
msc4210_enabled msc4222_enabled msc4235_enabled msc4242_enabled
msc4263_limit_key_queries_to_users_who_share_rooms msc4267_enabled msc4277_enabled
msc4293_enabled msc4306_enabled msc4354_enabled msc4370_enabled msc4388_mode msc4446_enabled
msc4450_enabled msc4452_enabled msc4491_enabled msc4502_enabled msc4512_enabled
""")

#: Values that must have a form, or 1.163 does not start.
SIZES = words("""
event_cache_size max_avatar_size max_image_pixels max_spider_size max_upload_size
remote_media_download_burst_count remote_media_download_per_second
""")
DURATIONS = words("""
delete_stale_devices_after forgotten_room_retention_period key_refresh_interval
max_event_delay_duration nonrefreshable_access_token_lifetime refresh_token_lifetime
refreshable_access_token_lifetime redaction_allowed_period redaction_retention_period
session_lifetime turn_user_lifetime
unused_expiration_time user_ips_max_age
""")
LISTS = words("""
alias_creation_rules allowed_avatar_mimetypes app_service_config_files auto_join_rooms
dont_notify_new_devices_for
federation_custom_ca_list federation_domain_whitelist media_upload_limits no_proxy_hosts
ip_range_blacklist ip_range_whitelist media_storage_providers
modules oidc_providers password_providers registrations_require_3pid
room_invite_state_types room_list_publication_rules thumbnail_sizes trusted_key_servers turn_uris
""")
#: Keys that hold keys, beside :data:`SECTIONS`.
MAPPINGS = words("""
auto_accept_invites background_updates default_power_level_content_override
extra_well_known_client_content federation login_via_existing_session matrix_rtc media_retention
oembed push_rules rc_delayed_event_mgmt rc_joins_per_room rc_media_create rc_presence rc_profile
rc_registration_token_validity rc_reports rc_room_creation rc_third_party_invite
rc_user_directory task_scheduler user_types
""")
#: What 1.163 wants as text, the secrets above all.
TEXTS = words("""
form_secret http_proxy https_proxy macaroon_secret_key recaptcha_private_key recaptcha_public_key
registration_shared_secret server_name worker_replication_secret
""")

#: What pip must have installed before a section may be used: distributions, by key.
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "saml2_config": ("saml2", ("pysaml2",)),
    "jwt_config": ("jwt", ("authlib",)),
    "oidc_config": ("oidc", ("authlib",)),
    "oidc_providers": ("oidc", ("authlib",)),
    "sentry": ("sentry", ("sentry-sdk",)),
    "url_preview_enabled": ("url-preview", ("beautifulsoup4",)),
    "opentracing": ("opentracing", ("jaeger-client", "opentracing")),
    "redis": ("redis", ("txredisapi", "hiredis")),
    "caches.track_memory_usage": ("cache-memory", ("pympler",)),
}

#: Room versions that 1.163 knows, the experimental ones aside.
ROOM_VERSIONS = frozenset(str(number) for number in range(1, 13))

RESOURCES = words("client consent federation keys media metrics openid replication static")


def known(key: str) -> bool:
    """Whether a table or a rule of ours knows this top key."""
    return key in BOTH or key in NEW or key in FIXED or key in WORKER_KEYS or key in SECRET_PATHS
